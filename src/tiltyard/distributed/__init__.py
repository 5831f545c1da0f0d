"""Several processes as one, and checkpoints on disk."""
