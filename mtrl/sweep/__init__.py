"""Sweeps: methods, seeds and a grid of settings as ordinary runs, side by side on a machine or a cluster."""
