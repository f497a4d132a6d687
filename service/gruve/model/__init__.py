"""The network, its tokenizers, the meaning of sampling, and the repository that models are loaded from.

Knows torch and safetensors. Has never heard of a request, a session or a batch that changes under way.
"""
