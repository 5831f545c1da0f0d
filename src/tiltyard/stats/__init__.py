"""Statistics: intervals, win rates, binned rates, rank correlation, statistics of texts."""
