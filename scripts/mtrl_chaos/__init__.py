"""Attacks on runs: `scripts/chaos.py`."""
