"""Byte-level BPE tokenizers trained on the user's corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tiltyard.data.bad_rows import BadRowRule, BadRows, parsed_rows
from tiltyard.data.limit import Limit
from tiltyard.data.templates import DEFAULT_TEMPLATE
from tiltyard.errors import ConfigError, DataError

PAD, END = "<|pad|>", "<|end|>"
MASK = "<|mask|>"
SPECIAL_TOKENS = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")
MODEL_MAX_LENGTH = 2048  # tokens; what transformers warns above; the model's own limit is set with the model


def train_tokenizer(texts: Iterable[str], vocab_size: int = 8192, *, mask: bool = False) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on `texts`; it encodes and decodes every string exactly.

    `<|end|>` is both end of turn and end of document (eos), `<|pad|>` is pad, there is no bos. The vocabulary holds
    the 256 bytes and 5 special tokens, and is smaller than `vocab_size` if the texts have too few distinct pieces.
    With `mask` (for encoders) the last token of the vocabulary is `<|mask|>`; the ids of the others do not change.

    Raises:
        ConfigError: `vocab_size` below 261 (with `mask` 262).
        DataError: no texts.
    """
    least = 256 + len(SPECIAL_TOKENS) + mask
    if vocab_size < least:
        raise ConfigError(
            "vocab_size is too small",
            got=vocab_size,
            expected=f"at least {least}: 256 bytes and {least - 256} special tokens",
            fix="8192 suits a corpus of some tens of megabytes",
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    seen = 0

    def counted() -> Iterator[str]:
        nonlocal seen
        for text in texts:
            seen += 1
            yield text

    backend.train_from_iterator(
        counted(),
        trainers.BpeTrainer(
            vocab_size=vocab_size - mask,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    if not seen:
        raise DataError("no texts to train a tokenizer on", got="an empty sequence", fix="check the corpus")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        **({"mask_token": MASK} if mask else {}),
        chat_template=DEFAULT_TEMPLATE,
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def id_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the highest id + 1: the embeddings that a model for this tokenizer needs. Ids may have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def for_encoder(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Gives an encoder's tokenizer bos and eos: without its own, `[CLS]` begins a text and `[SEP]` ends it.

    That is where its family's own tokenizer puts them, so a row of `Chat` looks as the encoder was pretrained.
    """
    if tokenizer.bos_token is None and tokenizer.cls_token is not None:
        tokenizer.bos_token = tokenizer.cls_token
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token
    return tokenizer


def plain_texts(
    source: str | Path, *, split: str | None = None, limit: Limit = None, bad_rows: BadRowRule = "error"
) -> Iterator[str]:
    """Yields the texts of a file of kind `text` (of `messages`: the turns, a blank line apart), for `train_tokenizer`.

    Raises:
        DataError: as `load_groups` does.
    """
    for _, group in parsed_rows(source, "text", BadRows(bad_rows), split=split, limit=limit):
        yield group.responses[0].text


def encodings_of(encoded: Any) -> Iterable[Any]:
    """Returns the encodings of a batch, one per text, with character offsets; None for tokenizers without any."""
    return encoded.encodings or repeat(None)  # of tokenizers in pure Python


def first_char(encoding: Any, token: int) -> int:
    """Returns the position of the character at which a token begins."""
    found = encoding.token_to_chars(token) if encoding is not None else None
    return 0 if found is None else int(found[0])
