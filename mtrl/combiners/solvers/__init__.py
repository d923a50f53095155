"""Solvers for the weights, one convex problem each."""
