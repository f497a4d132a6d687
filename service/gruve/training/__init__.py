"""Trains models and measures them: a corpus and a config become an entry of the model repository.

Knows torch, the network and the corpora, not requests, sessions or terminals.
"""
