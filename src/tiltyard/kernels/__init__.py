"""Fast ops for CPUs in C and oneDNN, and `backend`, the choice among them for each model."""
