"""The network, its tokenizers, the definition of sampling, and the repository that models are loaded from.

Knows torch and safetensors, not requests, sessions or batches that change while they run.
"""
