"""Every method's trajectories on two toy landscapes."""
