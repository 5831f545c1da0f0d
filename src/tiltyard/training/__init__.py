"""Training: sources, prepare steps, forward passes, the algorithm as a composition of them, and the one loop."""
