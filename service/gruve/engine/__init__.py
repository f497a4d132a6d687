"""Continuous batching, sessions and the backends that decode. Knows no protobuf, no asyncio, no gRPC.

Only plain values cross its border: sequences are admitted, cancelled and granted tokens; blocks of tokens come out.
"""
