"""HTTP for gruve: a client of one or more servers that translates HTTP requests to gRPC calls and stores nothing.

`app` puts the routes together, `server` runs them. What callers send, their key included, is passed on with each call.
Knows the client and the protocol, nothing of models, engines or files.
"""
