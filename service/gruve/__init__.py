"""gruve serves recurrent language models over gRPC: exact, resumable, streamed token by token."""

__version__ = "0.1.0"
