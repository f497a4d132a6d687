"""What every test runs under: small tensors on one thread, and properties that a busy machine cannot fail."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings
from serving import loop, repository, server, start, stopping, tiny_repository

torch.set_num_threads(1)
settings.register_profile("gruve", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gruve")

__all__ = ["loop", "repository", "server", "start", "stopping", "tiny_repository"]  # fixtures: a server in this process
