"""Which tasks to train together, and in which order, from affinities that a run has collected."""
