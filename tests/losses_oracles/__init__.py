"""The oracles of methods.md §1-2 for `tiltyard.losses`: exact enumeration on toy worlds, float64, seconds."""
