"""Continuous batching: sequences, scheduler, the loop, delivery. Knows no session, no protobuf and no asyncio.

Only plain values cross its border: sequences are admitted, cancelled and granted tokens; call reports come out.
"""
