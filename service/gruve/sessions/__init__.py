"""Sessions: their records, the table, generations on them, persistence and stores.

Knows the engine's plain values (sequences, progress, deadlines), never its threads; no protobuf and no gRPC.
"""
