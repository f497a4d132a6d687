"""Alternatives to gruve, each started from its published package in an environment of its own.

`systems.py` says how each is started and called, `environments.py` installs them, `measure.py` runs them. The other
files are the programs that a user of each would write. They run without gruve's dependencies, and import only
`char_rnn.py` and, if they serve it, the protocol.
"""
