"""How much of one text stands in another, in the same order: ROUGE-L over words (Lin 2004)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+")


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text in lower case: runs of letters and digits of any script."""
    return tuple(_WORD.findall(text.lower()))


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    One number holds a whole row of the usual table, a bit a word of `a` (Hyyrö 2004): each word of `b` costs a few
    operations on it, however long `a` is.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    row = whole = (1 << len(a)) - 1
    for word in b:
        hit = row & places.get(word, 0)
        row = ((row + hit) | (row - hit)) & whole
    return len(a) - row.bit_count()


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """2 LCS / (|a| + |b|), the harmonic mean of precision and recall; 0 where nothing is common, also for no words."""
    return 2 * common_length(a, b) / (len(a) + len(b)) if a and b else 0.0


def most_alike(words: Sequence[str], others: Sequence[Sequence[str]]) -> tuple[float, int]:
    """(the highest ROUGE-L with one of the others, its place); (0, -1) if there is nothing in common with any."""
    highest, place = 0.0, -1
    for i, other in enumerate(others):
        # no more than the shorter one can be common
        if 2 * min(len(words), len(other)) > highest * (len(words) + len(other)):
            found = rouge_l(words, other)
            if found > highest:
                highest, place = found, i
    return highest, place
