"""Texts that are alike: equal but for their spelling, or by ROUGE-L over words (Lin 2004)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_WORD = re.compile(r"\w+")
# what no screen shows: control characters that are no white space, and Unicode's default ignorable code points
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def folded(text: str) -> str:
    """Returns a text without differences that a reader does not see as another text.

    White space becomes one blank, and none at the ends; case, invisible characters and the Unicode form (composed,
    full-width, ligatures: NFKC) are taken away. Unicode 15, section 3.13: case folding of normalised text.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
        text = unicodedata.normalize("NFKC", text.casefold())
    return " ".join(_INVISIBLE.sub("", text).casefold().split())


def words_of(text: str) -> tuple[str, ...]:
    """Splits a text into lower-case words: runs of letters and digits of any script."""
    return tuple(_WORD.findall(text.lower()))


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Computes the length of the longest common subsequence.

    An integer holds a whole row of the dynamic program, one bit per word of `a` (Hyyrö 2004), so that each word of `b`
    costs a few operations, however long `a` is.
    """
    positions: dict[str, int] = {}
    for i, word in enumerate(a):
        positions[word] = positions.get(word, 0) | 1 << i
    row = whole = (1 << len(a)) - 1
    for word in b:
        hit = row & positions.get(word, 0)
        row = ((row + hit) | (row - hit)) & whole
    return len(a) - row.bit_count()


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """Computes 2 LCS / (|a| + |b|), the harmonic mean of precision and recall; 0 for empty texts."""
    return 2 * common_length(a, b) / (len(a) + len(b)) if a and b else 0.0


def most_alike(words: Sequence[str], others: Sequence[Sequence[str]]) -> tuple[float, int]:
    """Returns (highest ROUGE-L with one of the others, its index); (0, -1) if no word is shared with any."""
    highest, index = 0.0, -1
    for i, other in enumerate(others):
        # upper bound: the shorter text as a whole
        if 2 * min(len(words), len(other)) > highest * (len(words) + len(other)):
            score = rouge_l(words, other)
            if score > highest:
                highest, index = score, i
    return highest, index
