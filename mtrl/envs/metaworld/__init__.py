"""Meta-World as a suite of tasks."""
