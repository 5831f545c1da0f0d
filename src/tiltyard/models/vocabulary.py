"""The tokenizer beside its model: tokens without an embedding, and a padding token that ends no response."""

from __future__ import annotations

import re
from typing import Any

from tiltyard.data.chat import Chat
from tiltyard.errors import ModelError
from tiltyard.numerals import plural
from tiltyard.types import Group, Message, Prompt, Response

PAD = "<|pad|>"  # where a tokenizer has no token to spare
_SPARE = re.compile(r"pad|reserved|unused|extra_id|unk|endoftext|placeholder", re.IGNORECASE)


def closing_id(chat: Chat) -> int:
    """The id that ends every encoded response."""
    group = Group(Prompt(messages=(Message("user", "Hi"),)), (Response(text="Hi"),))
    return chat.encode_group(group).responses[0].ids[-1]


def check_vocabulary(chat: Chat, module: Any, name: str) -> list[str]:
    """Refuses a tokenizer that may produce ids for which the model has no embedding.

    Special tokens beyond the embeddings that neither the template nor the tokenizer uses are let through, for a text
    can never become one (published text models have an image token there); returns a line that names them.

    Raises:
        ModelError: it names some of the tokens and both numbers.
    """
    rows = int(module.get_input_embeddings().weight.shape[0])
    beyond = {token: i for token, i in chat.tokenizer.get_vocab().items() if i >= rows}
    if not beyond:
        return []
    special = {t.content for t in chat.tokenizer.added_tokens_decoder.values() if t.special}
    used = {chat.eos_id, chat.start_id, *chat.stop_ids, *_framing_ids(chat)}
    harmful = sorted(i for token, i in beyond.items() if token not in special or i in used)
    names = {i: token for token, i in beyond.items()}
    if harmful:
        shown = ", ".join(f"{names[i]} ({i})" for i in harmful[:4])
        raise ModelError(
            f"{plural(len(harmful), 'token has', 'tokens have')} no embedding",
            where=name,
            got=f"a tokenizer with ids up to {max(names)} ({len(names)} beyond the embeddings): {shown}",
            expected=f"ids below {rows:,}, the number of the model's embeddings",
            fix="call model.resize_token_embeddings(len(tokenizer)) and save both, or take the model's own tokenizer",
        )
    return [f"special tokens without an embedding, which no text becomes: {', '.join(sorted(beyond))}"]


def _framing_ids(chat: Chat) -> set[int]:
    """The ids of what the template and tokenizer write around texts."""
    prompt = Prompt(messages=(Message("user", "Hi"),))
    group = chat.encode_group(Group(prompt, (Response(text="Hi"),)))
    return {*group.prompt.ids, *group.responses[0].ids}


def spare_pad(chat: Chat, rows: int) -> str:
    """A padding token that never stands in a conversation: an idle special token with an embedding, or else a new one.

    transformers reads a reward model's score at the last token that is not padding, so padding must not be what ends a
    response.
    """
    tokenizer = chat.tokenizer
    used = {chat.eos_id, chat.start_id, *chat.stop_ids, *_framing_ids(chat)}
    template = str(tokenizer.chat_template)
    idle = [
        (token.content, i)
        for i, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and i < rows and i not in used
        if token.content not in template and _SPARE.search(token.content)
    ]
    if idle:
        return min(idle, key=lambda one: ("pad" not in one[0].lower(), one[1]))[0]
    name = PAD
    while name in tokenizer.get_vocab():
        name = name.replace("|>", "_|>")
    return name
