"""Small changes of a text that leave its meaning as it is, to test that a score leaves it too."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping


def _rng(text: str) -> random.Random:
    return random.Random(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())


def lower_case(text: str) -> str:
    """The text in lower case."""
    return text.lower()


def no_full_stop(text: str) -> str:
    """The text without the mark at its end."""
    return re.sub(r"[.!]+\s*$", "", text)


def double_spaces(text: str) -> str:
    """The text with two spaces for each one."""
    return re.sub(r"(?<=\S) (?=\S)", "  ", text)


def typo(text: str) -> str:
    """The text with two neighbouring letters swapped in one word of four or more, drawn by the text itself."""
    words = [m for m in re.finditer(r"[^\W\d_]{4,}", text) if len(set(m.group()[1:-1])) > 1]
    if not words:
        return text
    rng = _rng(text)
    word = rng.choice(words)
    inner = range(word.start() + 1, word.end() - 2)
    at = rng.choice([i for i in inner if text[i] != text[i + 1]] or list(inner))
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def polite(text: str) -> str:
    """The text behind a polite word."""
    return f"Please: {text}"


def greeting(text: str) -> str:
    """The text behind a greeting."""
    return f"Hello! {text}"


PROMPT: Mapping[str, Callable[[str], str]] = {
    "prompt_polite": polite,
    "prompt_greeting": greeting,
    "prompt_typo": typo,
    "prompt_lower_case": lower_case,
    "prompt_double_spaces": double_spaces,
}
RESPONSE: Mapping[str, Callable[[str], str]] = {
    "response_lower_case": lower_case,
    "response_no_full_stop": no_full_stop,
    "response_double_spaces": double_spaces,
    "response_typo": typo,
}
NAMES = (*PROMPT, *RESPONSE)
