"""Pictures of README and docs/results.md: the film, and success over minutes."""
