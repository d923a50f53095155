"""The training loop: train, resume, evaluate."""
