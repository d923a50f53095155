"""Stable-Baselines3's SAC on one task, as a run that mtrl-report reads."""
