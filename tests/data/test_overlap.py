"""ROUGE-L over words: values worked out by hand, and the plain table of the longest common subsequence."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data.overlap import common_length, folded, most_alike, rouge_l, words_of


def table(a: Sequence[str], b: Sequence[str]) -> int:
    """The textbook's dynamic programme."""
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            rows[i][j] = rows[i - 1][j - 1] + 1 if x == y else max(rows[i - 1][j], rows[i][j - 1])
    return rows[-1][-1]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("police killed the gunman", "police kill the gunman", 3 / 4),  # Lin 2004, section 3.1: S1 and S2
        ("police killed the gunman", "the gunman kill police", 2 / 4),  # S1 and S3
        ("Who is Norska?", "who is norska", 1.0),
        ("one two three", "three two one", 1 / 3),
        ("a b", "a b c d e f", 2 * 2 / 8),
        ("a", "b", 0.0),
        ("", "a", 0.0),
        ("?!", "", 0.0),
    ],
)
def test_values_by_hand(a: str, b: str, expected: float) -> None:
    assert rouge_l(words_of(a), words_of(b)) == pytest.approx(expected, abs=1e-15)
    assert rouge_l(words_of(b), words_of(a)) == pytest.approx(expected, abs=1e-15)


def test_words_of_any_script() -> None:
    assert words_of("Où est l'École? 東京 42x") == ("où", "est", "l", "école", "東京", "42x")


def test_the_common_length_is_that_of_the_table() -> None:
    rng = random.Random(1)
    for _ in range(300):
        a, b = ([rng.choice("abcde") for _ in range(rng.randrange(90))] for _ in range(2))
        assert common_length(a, b) == table(a, b)


def test_the_nearest_is_found_although_most_are_not_measured() -> None:
    rng = random.Random(2)
    others = [tuple(rng.choice("abcdef") for _ in range(rng.randrange(1, 12))) for _ in range(60)]
    for _ in range(40):
        words = tuple(rng.choice("abcdef") for _ in range(rng.randrange(1, 12)))
        each = [rouge_l(words, other) for other in others]
        assert most_alike(words, others) == (max(each), each.index(max(each)))
    assert most_alike(("x",), others) == (0.0, -1)


SAME = [
    "The  caf\u00e9\tis OPEN",
    " the cafe\u0301 is open\n",
    "\u200bThe caf\u00e9 \u00adis\u00a0open\ufeff",
    "T\u200dhe caf\u00e9 is \uff4f\uff50\uff45\uff4e",
]


@pytest.mark.parametrize("text", SAME)
def test_spellings_that_a_reader_does_not_tell_apart(text: str) -> None:
    assert folded(text) == "the caf\u00e9 is open"


@pytest.mark.parametrize("text", ["The cafe is open", "The caf\u00e9 is open?", "The caf\u00e9 isopen", "\u4f60\u597d"])
def test_texts_that_differ(text: str) -> None:
    assert folded(text) != folded(SAME[0])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(), st.data())
def test_folding_ignores_what_no_screen_shows(text: str, data: st.DataObject) -> None:
    once = folded(text)
    assert folded(once) == once
    assert folded(f" \t{text}\r\n") == once
    assert folded(unicodedata.normalize("NFD", text)) == folded(unicodedata.normalize("NFC", text)) == once
    at = data.draw(st.integers(0, len(text)))
    hidden = data.draw(st.sampled_from("\u200b\u200c\u2060\ufeff\u00ad\ufe0f\x00\x7f\U000e0041"))
    assert folded(text[:at] + hidden + text[at:]) == once
