"""Markers: the added tokens with which a chat template opens and closes turns, apart from the same words in a text.

A marker is a token that the tokenizer matches before anything else: every special token, and of the other added tokens
those that the template writes (several published tokenizers mark none of their role tokens as special). Text of a row
that spells one is broken up, so that it is tokenised as words. White space is no marker, whatever a tokenizer adds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from jinja2 import Environment, TemplateError
from transformers import PreTrainedTokenizerBase

from tiltyard.data.text_ids import BREAK, PLAIN, TextEncoder
from tiltyard.errors import DataError


class Guard:
    """Breaks up the markers that a user's words spell.

    Args:
        markers: the tokens that only a template may write.
        encoder: makes the ids of markers that cannot be broken in two.
    """

    def __init__(self, markers: Iterable[str], tokenizer: Any, encoder: TextEncoder):
        self.markers = tuple(sorted(markers, key=len, reverse=True))
        self.pattern = _pattern((*self.markers, PLAIN))
        self._encoder = encoder
        self._normalize, self._normalized = _after_normalizing(tokenizer, self.markers)

    def __call__(self, text: str, where: str = "") -> str:
        """Returns the text with its markers broken up.

        Raises:
            DataError: the tokenizer has no other ids for a marker, so these words cannot be told from it.
        """
        if BREAK in text or PLAIN in text:  # noncharacters of the text itself
            text = re.sub(f"[{BREAK}{PLAIN}]", lambda found: self._plain(found[0], where), text)
        done: list[str] = []
        place = 0
        while found := self.pattern.search(text, place):
            marker, start = found[0], found.start()
            if marker == PLAIN:
                stop = text.index(PLAIN, found.end()) + 1
                done.append(text[place:stop])
            elif len(marker) == 1:
                stop = found.end()
                done.append(text[place:start] + self._plain(marker, where))
            else:  # what follows the break is searched again: markers may overlap
                stop = start + 1
                first = self._plain(marker[0], where) if marker[0] in self.markers else marker[0]
                done.append(text[place:start] + first + BREAK)
            place = stop
        guarded = "".join(done) + text[place:]
        if self._normalized is not None:
            self._check_normalized(guarded, where)
        return guarded

    def _plain(self, marker: str, where: str) -> str:
        try:
            return self._encoder.plain(marker, self.markers)
        except KeyError as error:
            raise self._refusal(marker, where) from error

    def _check_normalized(self, guarded: str, where: str) -> None:
        """Refuses words that the tokenizer's normalizer turns into a marker (lower case, full-width forms)."""
        for part in re.split(f"{BREAK}|{PLAIN}.{PLAIN}", guarded):
            if found := self._normalized.search(self._normalize(part)):  # type: ignore[union-attr]
                raise self._refusal(found[0], where)

    def _refusal(self, marker: str, where: str) -> DataError:
        return DataError(
            "a text spells a control token that the tokenizer cannot write as plain words",
            where=where,
            got=marker,
            expected="text without it",
            fix="take it out of the row, or give the tokenizer another marker",
        )


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[set[str], set[str]]:
    """Returns the special tokens, and the other added tokens that are not white space."""
    added = tokenizer.added_tokens_decoder.values()
    special = {t.content for t in added if t.special} | set(tokenizer.all_special_tokens)
    return {t for t in special if t}, {t.content for t in added if t.content.strip()} - special


def literals(template: str) -> str:
    """Returns the strings and the plain text of a Jinja template, a line each."""
    try:
        tokens = list(Environment(autoescape=True).lex(template))
    except TemplateError:
        return ""
    return "\n".join(value for _, kind, value in tokens if kind in ("string", "data"))


def found_in(tokens: Iterable[str], text: str) -> set[str]:
    """Returns those of the tokens that the text contains."""
    return {token for token in tokens if token in text}


def _pattern(markers: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(t) for t in sorted(markers, key=len, reverse=True)))


def _after_normalizing(tokenizer: Any, markers: tuple[str, ...]) -> tuple[Any, re.Pattern[str] | None]:
    """Returns the tokenizer's normalizer and the markers that it is applied to before they are matched, if any."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normalizer = None if backend is None else backend.normalizer
    if normalizer is None:
        return None, None
    matched = {t.content for t in tokenizer.added_tokens_decoder.values() if t.normalized} & set(markers)
    plain = {normalizer.normalize_str(t).strip() for t in matched} - {""}
    return normalizer.normalize_str, _pattern(plain) if plain else None
