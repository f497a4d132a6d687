"""`gruve bench chaos`: injects faults into servers and stores under load and compares every token with a clean run."""
