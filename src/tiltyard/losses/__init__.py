"""Losses and the arithmetic around them: pure functions of tensors, unreduced, torch only.

Shape suffixes: R response tokens, flat over the batch, each response's tokens contiguous; B responses; G groups;
P ordered pairs. There is no padding. The trainer sums the items and divides by their number.
"""
