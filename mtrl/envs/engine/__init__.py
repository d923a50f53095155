"""Environments in worker processes over shared memory, supervised. Knows no Meta-World."""
