"""The gRPC server: request validation, servicers, streams, errors to status codes, metrics, health and shutdown.

Knows grpc, asyncio and prometheus_client. Decides nothing about decoding: it asks the engine and passes on.
"""
