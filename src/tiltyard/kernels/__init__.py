"""Fast operations for CPUs, and whether a model and this machine can use them."""
