"""Flat, single-file references to read as a textbook. No import from tiltyard; the toolkit must match them."""
