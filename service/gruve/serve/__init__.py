"""The wire: servicers, the table from errors to status codes, streams, metrics, wiring and drain.

Knows grpc, asyncio and prometheus_client. Decides nothing about decoding: it asks the engine and passes on.
"""
