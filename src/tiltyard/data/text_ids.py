"""Segments of text become token ids, the same ids whatever they were cut from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

# A Unicode noncharacter: inserted into special tokens that occur in a text, so that they remain plain text.
BREAK = "\ufdd0"
BATCH = 2048  # texts a call of the tokenizer: bounds the memory of its encodings


class TextEncoder:
    """Tokenizes segments: without special tokens of the tokenizer's own, and without a space put before the words."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = cast(Any, tokenizer)
        self._ints = list(range(len(tokenizer)))  # one int object an id: a corpus takes a fifth of the memory
        self._anchor, self._anchor_ids = self._find_anchor()

    def call(self, texts: list[str]) -> Any:
        # never add_special_tokens: bos and eos come from the template or from here, so there are never two
        return self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )

    def shared(self, ids: Iterable[int]) -> tuple[int, ...]:
        return tuple(map(self._ints.__getitem__, ids))

    def __call__(self, texts: Sequence[tuple[str, bool]]) -> list[tuple[int, ...]]:
        """Tokenizes texts; the flag marks a text that continues a previous segment."""
        parts = [
            [(part, follows or i > 0) for i, part in enumerate(text.split(BREAK)) if part] for text, follows in texts
        ]
        unique = list(dict.fromkeys(chain.from_iterable(parts)))  # pairs repeat their prompts
        ids: dict[tuple[str, bool], tuple[int, ...]] = {}
        for start in range(0, len(unique), BATCH):
            batch = unique[start : start + BATCH]
            encoded = self.call([self._anchor + text if follows else text for text, follows in batch])["input_ids"]
            for key, found in zip(batch, encoded, strict=True):
                cut = len(self._anchor_ids) if key[1] else 0
                if cut and tuple(found[:cut]) != self._anchor_ids:
                    found, cut = self.call([key[0]])["input_ids"][0], 0
                ids[key] = self.shared(found[cut:])
        return [tuple(chain.from_iterable(ids[part] for part in text)) for text in parts]

    def _find_anchor(self) -> tuple[str, tuple[int, ...]]:
        """Finds a text to put before a continuing segment, for tokenizers that put a space before every text.

        SentencePiece-style tokenizers read "word" as " word". A segment that continues must not get that space, so it
        is tokenised behind a newline whose ids are then cut off.
        """
        plain, spaced = (self.tokenizer.tokenize(text) for text in ("word", " word"))
        if plain[:1] != spaced[:1] and not plain[0].startswith(("\u2581", "\u0120")):
            return "", ()
        return "\n", tuple(self.call(["\n"])["input_ids"][0])
