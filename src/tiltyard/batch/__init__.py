"""Packed batches: forests of token ids, columns beside them, log-probabilities of their tokens."""
