"""Multi-task proximal policy optimisation."""
