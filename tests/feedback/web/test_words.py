"""The table of words is whole: three languages, the same values in each, and no page asks for a word it lacks."""

from __future__ import annotations

import re
import string
from pathlib import Path

import tiltyard.feedback
from tiltyard.feedback.web.words import LANGUAGES, Words, chosen, table

FEEDBACK = Path(tiltyard.feedback.__file__).parent


def _values(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_word_has_three_languages_with_the_same_values():
    for key, texts in table().items():
        assert isinstance(key, str), key
        assert list(texts) == list(LANGUAGES), key
        assert all(isinstance(text, str) and text for text in texts.values()), key
        assert len({frozenset(_values(text)) for text in texts.values()}) == 1, key


def test_pages_use_words_of_the_table():
    used = set()
    for path in FEEDBACK.rglob("templates/*.html"):
        used |= set(re.findall(r"""\bw\(["'](\w+)["'][,)]""", path.read_text(encoding="utf-8")))
    assert used
    assert used <= set(table())


def test_the_language_of_a_visitor():
    assert chosen("ko", "zh") == "ko"
    assert chosen("xx", "fr, zh-TW;q=0.7, en;q=0.9") == "en"
    assert chosen("", "zh-Hans-CN") == "zh"
    assert chosen("", "") == chosen("", "fr;q=x, ;;,") == "en"
    assert Words("en")("progress", done=1, left=2) == "1 done, 2 left"
