"""The load generator that the serving benchmarks share: client processes, transports, open and closed loops."""
