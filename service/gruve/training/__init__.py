"""Makes models: a corpus and a config in, an entry of the model repository out; and says how good one is.

Knows torch, the network and the corpora. Has never heard of a request, a session or a terminal.
"""
