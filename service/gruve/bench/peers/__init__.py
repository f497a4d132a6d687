"""Alternatives to gruve, each started from its published package in an environment of its own.

`systems.py` says how each is set up and spoken to, `environments.py` installs them, `measure.py` runs them. The other
files are the programs that a user of each would write; they run without gruve's dependencies and import nothing of
gruve but `char_rnn.py` and, where that is what is served, the contract.
"""
