"""Measurements of a text that rules compare: words, lists, questions, numbers, scripts, repetition.

Each takes time in proportion to the text's length, whatever the text.
"""

from __future__ import annotations

import decimal
import re
import unicodedata
from decimal import Decimal
from functools import lru_cache
from typing import Literal

Script = Literal[
    "latin", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "thai", "chinese", "japanese", "korean"
]
SCRIPTS: dict[str, frozenset[str]] = {  # the first words of the Unicode names of their letters
    "latin": frozenset({"LATIN"}),
    "cyrillic": frozenset({"CYRILLIC"}),
    "greek": frozenset({"GREEK"}),
    "arabic": frozenset({"ARABIC"}),
    "hebrew": frozenset({"HEBREW"}),
    "devanagari": frozenset({"DEVANAGARI"}),
    "thai": frozenset({"THAI"}),
    "chinese": frozenset({"CJK", "IDEOGRAPHIC"}),
    "japanese": frozenset({"CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}),
    "korean": frozenset({"HANGUL"}),
}
NUMBERS = decimal.Context(prec=400, traps=[])  # nothing that a text holds raises
_LONGEST_NUMBER = 300  # characters

_ITEM = re.compile(r"^[ \t]*+(?:[-*+•‣◦–][ \t]|[0-9]{1,3}[.)](?:[ \t]|$))", re.MULTILINE)
_STRING = re.compile(r'"(?:[^"\\]|\\.?)*+"?', re.DOTALL)  # one without an end reaches to the end: nothing is read twice
_NUMBER = re.compile(  # at most 20 groups: a long row of them is read in linear time
    r"(?:(?<![0-9A-Za-z)])[-+\u2212])?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3}){1,20}+(?![0-9])|[0-9]++)(?:\.[0-9]++)?|(?<![0-9.])\.[0-9]++)(?:[eE][-+]?[0-9]++)?"
)
_AFTER_ANSWER = "\"'`*_)]}»”’」』 \t\r\n"  # signs that may follow the last sign of a sentence
_END_MARKS = ".!,;:。"


def contains_word(text: str, word: str) -> bool:
    """True if the word or phrase occurs whole, without regard to case; any white space separates its words.

    Beside a sign that is no letter, digit or underscore nothing is asked: `C++` is found in `C++11`.
    """
    return _word(word).search(text.casefold()) is not None


@lru_cache(maxsize=1024)
def _word(word: str) -> re.Pattern[str]:
    parts = word.casefold().split()
    before = r"(?<!\w)" if re.match(r"\w", parts[0]) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", parts[-1]) else ""
    return re.compile(before + r"\s++".join(map(re.escape, parts)) + after)


def ends_with_question(text: str) -> bool:
    """True if the last sign, closing quotes, brackets and emphasis aside, is a question mark."""
    return text.rstrip(_AFTER_ANSWER).endswith(("?", "？", "؟"))


def has_list(text: str) -> bool:
    """True if a line begins with a bullet and a space, or with a number and a full stop or bracket."""
    return _ITEM.search(text) is not None


def repetition(text: str, n: int) -> float:
    """The share of repeated n-grams of words, 1 - distinct / all, in [0, 1); 0 for a text of fewer than n words."""
    words = text.casefold().split()
    grams = list(zip(*(words[i:] for i in range(n)), strict=False)) if len(words) >= n else []
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def script_share(text: str, letters: frozenset[str]) -> float:
    """The share of the text's letters whose Unicode name begins with one of these words; 0 for no letters."""
    kinds = [_kind(sign) for sign in text if sign.isalpha()]
    return sum(kind in letters for kind in kinds) / len(kinds) if kinds else 0.0


@lru_cache(maxsize=65536)
def _kind(sign: str) -> str:
    """`LATIN`, `CYRILLIC`, ...; fullwidth letters are those that they stand for."""
    return unicodedata.name(unicodedata.normalize("NFKC", sign)[0], "").partition(" ")[0]


def normalized(text: str) -> str:
    """An answer for comparison: without case, white space collapsed, quotes, emphasis and end marks taken off."""
    return " ".join(text.casefold().split()).strip(_AFTER_ANSWER + _END_MARKS + "([{«“‘「『")


def final_number(text: str) -> Decimal | None:
    """The first number after the last `####`, or else the last number; None if there is none.

    Commas between groups of three digits are left out. A number of more than 300 characters, or beyond the range of
    `decimal`, is none.
    """
    _, marked, answer = text.rpartition("####")
    last = ""
    for match in _NUMBER.finditer(answer if marked else text):
        last = match.group()
        if marked:
            break
    if not last or len(last) > _LONGEST_NUMBER:
        return None
    value = NUMBERS.create_decimal(last.replace(",", "").replace("\u2212", "-"))
    return value if value.is_finite() else None


def nesting(text: str) -> int:
    """The deepest nesting of brackets and braces outside JSON strings."""
    depth = deepest = 0
    for sign in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if sign in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
