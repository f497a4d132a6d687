"""The setup of all tests: small tensors on one thread, and properties without a deadline, for busy machines."""

from __future__ import annotations

import os
import signal

import torch
from hypothesis import HealthCheck, settings

from redis_server import redis_server
from serving import float32_server, loop, repository, server, sqlite, start, stopping, tiny_repository

# Triton reads this when it is imported: its kernels are interpreted in the tests.
os.environ["TRITON_INTERPRET"] = "1"
# A shell makes background processes ignore SIGINT, and the processes that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
# Servers that tests start as processes keep sessions in memory unless told otherwise.
os.environ["GRUVE_STORE"] = "memory"
properties = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
# Every run has the same examples: a change is judged by what it changes. `--hypothesis-profile random` draws others.
settings.register_profile("gruve", properties, derandomize=True)
settings.register_profile("random", properties, print_blob=True)
settings.load_profile("gruve")

__all__ = [
    "float32_server",
    "loop",
    "redis_server",
    "repository",
    "server",
    "sqlite",
    "start",
    "stopping",
    "tiny_repository",
]  # fixtures: a server in this process
