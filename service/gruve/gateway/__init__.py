"""HTTP for gruve: a plain client of one or more servers, which translates and keeps nothing.

`app` puts the routes together, `server` runs them. What callers send, their key included, is passed on with each call.
Knows the client and the protocol, nothing of models, engines or files.
"""
