"""The middle of the house: batches, sources, prepare steps, the algorithm as a composition, and the one loop."""
