"""Conversations rendered with a tokenizer's chat template, and the text that the template writes around an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tiltyard.data.text_ids import BREAK, TextEncoder
from tiltyard.errors import DataError, ModelError
from tiltyard.types import Message

_PROBE = "TILTYARDPROBE"


class Renderer:
    """Renders conversations as text; special tokens in their words are broken up, so that they remain plain text.

    Attributes:
        lead: the template's text between the generation prompt and a response.
        end: its text after a response, up to and including the end-of-turn token; empty if there is none.
        suffix: all of its text after a response. rest: the part of it after `end` that sampling never sees.
        end_id: id of the end-of-turn token, or None.

    Raises:
        ModelError: the template cannot render a question and an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: TextEncoder):
        self.tokenizer = cast(Any, tokenizer)
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        special |= set(tokenizer.all_special_tokens)
        self.special = re.compile("|".join(re.escape(t) for t in sorted(special, key=len, reverse=True)))
        self.lead, self.suffix, self.end, end_token = self._find_frame()
        self.end_id = int(self.tokenizer.convert_tokens_to_ids(end_token)) if end_token else None
        self.rest = self.suffix[len(self.end) :]
        if end_token and len(encoder.call([end_token + self.rest])["input_ids"][0]) == 1:
            self.rest = ""  # the token swallows what follows it (Phi-3's newline), so sampling never sees it either

    def render(self, turns: Sequence[Message], *, generation: bool, where: str = "") -> str:
        """Returns the conversation as text, with the generation prompt if asked.

        Raises:
            DataError: the template rejects it; `where` names the row.
        """
        messages = [{"role": turn.role, "content": self.guard(turn.content)} for turn in turns]
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        except (TemplateError, ValueError, TypeError) as error:
            raise DataError(
                "the chat template rejects this conversation",
                where=where,
                got=f"{', '.join(turn.role for turn in turns)}: {error}",
                expected="turns that the model's chat template can render",
                fix="merge the system turn into the first user turn, let user and assistant alternate, "
                "or set tokenizer.chat_template",
            ) from error
        return text

    def guard(self, text: str) -> str:
        """Returns the text with special tokens broken up: a user's text must not end a turn or open another."""
        return self.special.sub(lambda found: found[0][0] + BREAK + found[0][1:], text)

    def _find_frame(self) -> tuple[str, str, str, str]:
        """Returns the template's text before a response, after it, after it up to end-of-turn, and that token."""
        question = [Message("user", "Hi")]
        name = str(self.tokenizer.name_or_path)
        try:
            opened = self.render(question, generation=True)
            whole = self.render([*question, Message("assistant", _PROBE)], generation=False)
        except DataError as error:
            raise ModelError(
                "the chat template cannot render a question and its answer",
                where=name,
                got=error.got,
                fix="set tokenizer.chat_template to a template that can, or to None to use Tiltyard's own",
            ) from error
        before, probe, suffix = whole.rpartition(_PROBE)
        if not probe:
            raise ModelError(
                "the chat template leaves the assistant's words out",
                where=name,
                got=whole,
                expected=f"a rendering that contains {_PROBE}",
                fix="correct tokenizer.chat_template, or set it to None to use Tiltyard's own",
            )
        found = self.special.search(suffix)
        end, token = (suffix[: found.end()], found[0]) if found else ("", "")
        return before[len(opened) :] if before.startswith(opened) else "", suffix, end, token

    def cut_end(self, text: str) -> tuple[str, str]:
        """Splits an assistant's rendered turn into (text with the end-of-turn token, the template's text after it)."""
        if text.endswith(self.suffix):
            words = text[: len(text) - len(self.suffix)]
            return words + self.end, self.rest
        # a template that writes the last turn in another way than the others
        words, end, rest = text.rpartition(self.end) if self.end else (text, "", "")
        return (words + end, rest) if end else (text + self.end, "")
