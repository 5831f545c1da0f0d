"""The reward of together.yaml: a dense signal that a few steps can raise."""

from __future__ import annotations

from typing import Any


def short_words(prompt: Any, response: Any) -> float:  # noqa: ARG001 - a reward's signature
    """Share of a response's words that have at most four characters."""
    words = response.text.split()
    return sum(len(word) <= 4 for word in words) / max(len(words), 1)
