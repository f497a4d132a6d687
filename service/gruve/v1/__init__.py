"""The wire contract in Python: stubs that `make proto` generates from proto/gruve/v1, whose comments are the manual.

Knows nothing of the server. Nothing here is written by hand but this sentence.
"""
