"""`gruve bench gpu`: correctness proofs of the GPU backends, then their speed beside torch and the GPU's limits."""
