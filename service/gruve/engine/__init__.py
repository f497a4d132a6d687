"""Continuous batching: sequences, scheduler, engine loop, delivery. Knows no session, no protobuf and no asyncio.

Only plain values cross its border: sequences are admitted, cancelled and granted tokens; progress comes out.
"""
