"""Exact replacements of slow upstream functions."""
