"""What a run leaves behind: its directory, checkpoints, logs, and what is computed from them."""
