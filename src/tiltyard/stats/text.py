"""Statistics of texts: bits per byte, distinct n-grams, self-BLEU, unique texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import pairwise

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


def unique_share(texts: Sequence[str]) -> float:
    """Returns unique texts over all texts; nan without any."""
    return len(set(texts)) / len(texts) if texts else math.nan


def repeated_pairs(items: Sequence[Hashable]) -> float:
    """Returns the share of neighbouring pairs (of tokens, words) that occurred before; 0 without any."""
    pairs = list(pairwise(items))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def self_bleu(texts: Sequence[str], longest: int = 4) -> float:
    """Returns the mean BLEU of each text against all others (Zhu et al. 2018, "Texygen"): 1 where all are equal.

    BLEU of Papineni et al. 2002 over n-grams of words up to `longest`, without smoothing: a text that shares no n-gram
    of some length with the others counts 0. nan for fewer than two texts.
    """
    words = [text.split() for text in texts]
    if len(words) < 2:
        return math.nan
    precisions = np.ones(len(words))
    for n in range(1, longest + 1):
        counts = [Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1)) for w in words]
        most: dict[tuple[str, ...], list[int]] = {}  # of each n-gram the two highest counts in one text
        for count in counts:
            for gram, k in count.items():
                most[gram] = sorted([*most.get(gram, [0, 0]), k])[1:]
        for i, count in enumerate(counts):
            total = sum(count.values())
            # the highest count among the others: the second one where the highest is the text's own
            shared = sum(min(k, most[gram][0] if most[gram][1] == k else most[gram][1]) for gram, k in count.items())
            precisions[i] *= (shared / total) ** (1 / longest) if total else 0.0
    lengths = np.array([len(w) for w in words])
    return float(np.mean([p * _brevity(lengths, i) for i, p in enumerate(precisions)]))


def _brevity(lengths: np.ndarray, i: int) -> float:
    """BLEU's penalty of a text that is shorter than the reference nearest to it in length."""
    others = np.delete(lengths, i)
    nearest = min(others.tolist(), key=lambda length: (abs(length - lengths[i]), length))
    return 1.0 if lengths[i] >= nearest else math.exp(1 - nearest / max(int(lengths[i]), 1))
