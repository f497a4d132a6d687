"""What every test runs under: small tensors on one thread, and properties that a busy machine cannot fail."""

from __future__ import annotations

import os
import signal

import torch
from hypothesis import HealthCheck, settings

from redis_server import redis_server
from serving import loop, repository, server, sqlite, start, stopping, tiny_repository

# Before anything imports Triton, which looks at this once: its kernels are interpreted here.
os.environ["TRITON_INTERPRET"] = "1"
# A shell ignores SIGINT in what it starts in the background, and the processes that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
# Servers that tests start as processes keep to themselves unless told otherwise.
os.environ["GRUVE_STORE"] = "memory"
settings.register_profile("gruve", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gruve")

__all__ = [
    "loop",
    "redis_server",
    "repository",
    "server",
    "sqlite",
    "start",
    "stopping",
    "tiny_repository",
]  # fixtures: a server in this process
