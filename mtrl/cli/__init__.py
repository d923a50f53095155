"""Command lines. Imports no torch before training."""
