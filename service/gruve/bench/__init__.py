"""Benchmarks: the decode step, the server under load, its alternatives, its growth. Each ends in one line of JSON.

Knows every room but `cli`. The load generator knows only the protocol. Serving code uses nothing of this package.
"""
