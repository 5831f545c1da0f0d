"""What a machine with a GPU has to show: packed equals padded, the sampler's law, steps of a 0.5B model, resuming."""
