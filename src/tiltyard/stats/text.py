"""Statistics of texts: bits per byte, distinct n-grams."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tiltyard.errors import DataError


def bits_per_byte(nll_nats_total: float, bytes_total: int) -> float:
    """Returns the negative log-likelihood in bits per UTF-8 byte, which does not depend on the tokenizer."""
    if bytes_total <= 0:
        raise DataError("bits per byte needs some bytes", got=bytes_total)
    return nll_nats_total / math.log(2) / bytes_total


def distinct_n(texts: Sequence[str], n: int = 2, budget: int | None = None, seed: int = 0) -> float:
    """Returns unique over all word n-grams of the texts (1: no repetition, towards 0: collapsed).

    The plain ratio falls with the amount of text. With `budget`, that many n-grams are drawn (seeded, without
    replacement), so that models with longer and shorter responses compare. nan without any n-gram.
    """
    ngrams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    if not ngrams:
        return math.nan
    if budget is not None and len(ngrams) > budget:
        picked = np.random.default_rng(seed).choice(len(ngrams), size=budget, replace=False)
        ngrams = [ngrams[i] for i in picked]
    return len(set(ngrams)) / len(ngrams)
