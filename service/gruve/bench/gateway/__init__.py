"""The gateway beside direct gRPC: its speed, its CPU time and its memory."""
