"""Training: a recipe, its stages, its checked settings, and the log of its trajectories."""
