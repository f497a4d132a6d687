"""The models of a server: their versions, loading and unloading, and the engine of each."""
