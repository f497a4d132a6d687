"""Measures: the decode step, the server under load, its peers, how it grows; each ends in one line of JSON.

Knows every room but the command line, and the load generator knows no more of gruve than its contract. Nothing here is
used by what serves.
"""
