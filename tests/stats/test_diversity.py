"""Self-BLEU and unique texts: constants, and BLEU by its definition."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from tiltyard.stats.text import self_bleu, unique_share


def test_extremes() -> None:
    same = ["one two three four five"] * 3
    assert self_bleu(same) == pytest.approx(1)
    assert unique_share(same) == pytest.approx(1 / 3)
    apart = ["a b c d", "e f g h", "i j k l"]
    assert self_bleu(apart) == 0
    assert unique_share(apart) == 1
    assert math.isnan(self_bleu(["alone"]))
    assert math.isnan(unique_share([]))
    assert self_bleu(["", "a b"]) == 0


def by_definition(texts: list[str]) -> float:
    words = [text.split() for text in texts]
    total = 0.0
    for i, own in enumerate(words):
        others = [w for j, w in enumerate(words) if j != i]
        logs = 0.0
        for n in range(1, 5):
            count = Counter(tuple(own[k : k + n]) for k in range(len(own) - n + 1))
            most: Counter = Counter()
            for other in others:
                most |= Counter(tuple(other[k : k + n]) for k in range(len(other) - n + 1))
            shared = sum((count & most).values())
            logs += math.log(shared / count.total()) / 4 if shared else -math.inf
        nearest = min((abs(len(o) - len(own)), len(o)) for o in others)[1]
        total += math.exp(logs) * (1 if len(own) >= nearest else math.exp(1 - nearest / len(own)))
    return total / len(texts)


def test_bleu_of_the_definition() -> None:
    texts = [
        "the cat sat on the mat today",
        "the cat sat on the mat and the cat sat on the rug",
        "a dog sat on the mat today",
        "the cat sat on the mat",
    ]
    assert self_bleu(texts) == pytest.approx(by_definition(texts))
