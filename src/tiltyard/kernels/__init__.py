"""Fast ops for CPUs in C and oneDNN, and the backend that says which of them a model uses (`backend`)."""
