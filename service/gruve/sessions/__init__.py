"""What a client can come back to: session records, their table, generations, persistence and stores.

Knows the engine's plain values (sequences, progress), never its threads; no protobuf and no gRPC.
"""
