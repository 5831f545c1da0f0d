"""Losses and the arithmetic around them: pure functions of tensors, unreduced, torch only.

Shape suffixes: R response tokens, flat over the batch, each response's tokens contiguous; B responses; G groups;
P ordered pairs. Nothing here knows of padding. How items are summed and by what they are divided is the trainer's.
"""
