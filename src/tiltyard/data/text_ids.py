"""Segments of text become token ids, the same ids whatever they were cut from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from tiltyard.data.tokenizer import id_count

# Unicode noncharacters. BREAK stands inside a marker that occurs in a user's words, which then is tokenised in two
# parts. A marker that has no two parts (one character) becomes its number between two PLAIN: its ids are looked up.
BREAK = "\ufdd0"
PLAIN = "\ufdd1"
_FIRST = 0xF0000  # the number n of a plain marker is the character of the private plane at _FIRST + n
_CUTS = re.compile(f"{BREAK}|({PLAIN}.{PLAIN})", re.DOTALL)
BATCH = 2048  # texts a call of the tokenizer: bounds the memory of its encodings


class TextEncoder:
    """Tokenizes segments: without special tokens of the tokenizer's own, and without a space put before the words."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = cast(Any, tokenizer)
        self._ints = list(range(id_count(tokenizer)))  # one int object an id: a corpus takes a fifth of the memory
        self._anchor, self._anchor_ids = self._find_anchor()
        self._plain: list[tuple[str, tuple[int, ...]]] = []  # markers that are looked up, with the ids of their words

    def call(self, texts: list[str], **more: Any) -> Any:
        # never add_special_tokens: bos and eos come from the template or from here, so there are never two
        return self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **more,
        )

    def shared(self, ids: Iterable[int]) -> tuple[int, ...]:
        return tuple(map(self._ints.__getitem__, ids))

    def __call__(self, texts: Sequence[tuple[str, bool]]) -> list[tuple[int, ...]]:
        """Tokenizes texts; the flag marks a text that continues a previous segment."""
        parts = [_parts(text, follows) for text, follows in texts]
        unique = list(dict.fromkeys(part for part in chain.from_iterable(parts) if part[0][0] != PLAIN))
        ids: dict[tuple[str, bool], tuple[int, ...]] = {}  # pairs repeat their prompts
        for start in range(0, len(unique), BATCH):
            batch = unique[start : start + BATCH]
            encoded = self.call([self._anchor + text if follows else text for text, follows in batch])["input_ids"]
            for key, found in zip(batch, encoded, strict=True):
                cut = len(self._anchor_ids) if key[1] else 0
                if cut and tuple(found[:cut]) != self._anchor_ids:
                    found, cut = self.call([key[0]])["input_ids"][0], 0
                ids[key] = self.shared(found[cut:])
        return [
            tuple(chain.from_iterable(self._looked_up(p[0]) if p[0][0] == PLAIN else ids[p] for p in text))
            for text in parts
        ]

    # ------------------------------------------------------------------------------------------ markers as words

    def plain(self, marker: str, others: Iterable[str]) -> str:
        """Returns a string that encodes as the marker's characters, as if it and the `others` were no added tokens.

        Raises:
            KeyError: the tokenizer can write it as a control token only.
        """
        known = [text for text, _ in self._plain]
        if marker not in known:
            forbidden = {i for token in (marker, *others) if (i := self._id(token)) is not None}
            ids = self.shared(self._ids_without({marker, *others}, marker))
            if forbidden & set(ids):
                raise KeyError(marker)
            self._plain.append((marker, ids))
            known.append(marker)
        return f"{PLAIN}{chr(_FIRST + known.index(marker))}{PLAIN}"

    def unguarded(self, text: str) -> str:
        """Returns a guarded text as it was."""
        return _CUTS.sub(lambda found: self._plain[ord(found[1][1]) - _FIRST][0] if found[1] else "", text)

    def _looked_up(self, part: str) -> tuple[int, ...]:
        return self._plain[ord(part[1]) - _FIRST][1]

    def _id(self, token: str) -> int | None:
        found = self.tokenizer.convert_tokens_to_ids(token)
        return None if found is None or found == self.tokenizer.unk_token_id else int(found)

    def _ids_without(self, added: set[str], text: str) -> list[int]:
        """Ids of the text under a copy of the tokenizer that lacks these added tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:  # of tokenizers in pure Python
            return list(self.call([text], split_special_tokens=True)["input_ids"][0])
        state = json.loads(backend.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in added]
        state["post_processor"] = None
        copy = Tokenizer.from_str(json.dumps(state))
        ids = copy.encode(self._anchor + text, add_special_tokens=False).ids
        cut = len(self._anchor_ids)
        if tuple(ids[:cut]) != self._anchor_ids:
            ids, cut = copy.encode(text, add_special_tokens=False).ids, 0
        return list(ids[cut:])

    def _find_anchor(self) -> tuple[str, tuple[int, ...]]:
        """Finds a text to put before a continuing segment, for tokenizers that put a space before every text.

        SentencePiece-style tokenizers read "word" as " word". A segment that continues must not get that space, so it
        is tokenised behind a newline whose ids are then cut off.
        """
        plain, spaced = (self.tokenizer.tokenize(text) for text in ("word", " word"))
        if plain[:1] != spaced[:1] and not plain[0].startswith(("\u2581", "\u0120")):
            return "", ()
        return "\n", tuple(self.call(["\n"])["input_ids"][0])


def is_guarded(text: str) -> bool:
    """True if the text holds markers that were broken up, so that it is not tokenised in one piece."""
    return BREAK in text or PLAIN in text


def _parts(text: str, follows: bool) -> list[tuple[str, bool]]:
    """Cuts a guarded text at its breaks and plain markers; each part with the flag that it continues another."""
    if not is_guarded(text):
        return [(text, follows)] if text else []
    pieces = [piece for piece in _CUTS.split(text) if piece]
    return [(piece, follows or i > 0) for i, piece in enumerate(pieces)]
