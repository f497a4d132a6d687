"""The format of a receipt: its hashes, its canonical form, its signature and its file.

A receipt names which tokens a generation has and everything that they follow from, without the prompt and the tokens
themselves. docs/receipts.md specifies it, with test vectors.

Knows the protocol's messages, and nothing of models, sessions or clients.
"""
