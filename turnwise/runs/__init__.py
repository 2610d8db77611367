"""A run on disk: its folder, checkpoints, and the trajectories in it."""
