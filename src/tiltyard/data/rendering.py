"""Conversations rendered with a tokenizer's chat template, and the text that the template writes around an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tiltyard.data.markers import Guard, added_tokens, found_in, literals
from tiltyard.data.message_fields import template_dict, template_tools
from tiltyard.data.templates import with_generation_prompt
from tiltyard.data.text_ids import TextEncoder
from tiltyard.errors import DataError, ModelError
from tiltyard.types import Message

_PROBE = "TILTYARDPROBE"
# conversations in which a template may write its markers: between turns, and also around an answer
_BETWEEN = (("user", "assistant", "user"), ("system", "user", "assistant", "user"))
_ALL = (("user",), ("user", "assistant"), ("system", "user", "assistant"), *_BETWEEN)


class _Frame(NamedTuple):
    """The template's generation prompt, its text between that and a response, and all of its text after a response."""

    prompt: str
    lead: str
    suffix: str


class Renderer:
    """Renders conversations as text; markers that their words spell are broken up, so that they remain plain text.

    A template that writes the header of an answer inside the turn, whatever `add_generation_prompt` asks, is completed
    with that header as its generation prompt: the model is then sampled after it, here and elsewhere, and what it
    writes is the answer alone. `completed` is that header, or empty.

    Attributes:
        prompt: the generation prompt.
        lead: the template's text between the generation prompt and a response.
        end: its text after a response, up to and including the end-of-turn token; empty if there is none.
        suffix: all of its text after a response. rest: the part of it after `end` that sampling never sees.
        end_id: id of the end-of-turn token, or None.
        shown_lead, shown_tail: the part of `lead` that decoding shows, and of `end` before its token.

    Raises:
        ModelError: the template cannot render a question and an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: TextEncoder):
        self.tokenizer = cast(Any, tokenizer)
        self._dropped: dict[tuple[tuple[str, ...], bool], tuple[int, ...]] = {}
        frame = self._frame()
        frame, self.completed = self._complete(frame)
        special, plain = added_tokens(tokenizer)
        between = found_in(plain, "\n".join(self._written(roles, generation=False) for roles in _BETWEEN))
        written = found_in(plain, "\n".join(self._written(roles, g) for roles in _ALL for g in (False, True)))
        written |= {token for token in found_in(plain, literals(self._template())) if not token.isalnum()}
        written |= plain & {f"{token[0]}/{token[1:]}" for token in written}  # what <think> opens, </think> closes
        # tokens of the lead are the model's own words (it opens its thinking itself), those of a user never
        self.guard = Guard(special | written, tokenizer, encoder)
        self.guard_answer = Guard(special | (between - found_in(plain, frame.lead)), tokenizer, encoder)
        self.prompt, self.lead, self.suffix = frame
        found = self.guard_answer.pattern.search(self.suffix)
        self.end, end_token = (self.suffix[: found.end()], found[0]) if found else ("", "")
        self.end_id = int(self.tokenizer.convert_tokens_to_ids(end_token)) if end_token else None
        self.rest = self.suffix[len(self.end) :]
        if end_token and len(encoder.call([end_token + self.rest])["input_ids"][0]) == 1:
            self.rest = ""  # the token swallows what follows it (Phi-3's newline), so sampling never sees it either
        self.shown_lead = _without(special, self.lead)
        self.shown_tail = self.end.removesuffix(end_token)

    def render(self, turns: Sequence[Message], *, generation: bool, where: str = "", tools: str = "") -> str:
        """Returns the conversation as text, with the generation prompt if asked.

        Args:
            tools: JSON text of the tools that the template is given.

        Raises:
            DataError: the template rejects it, or leaves one of its turns out; `where` names the row.
        """
        if dropped := self._turns_left_out(tuple(turn.role for turn in turns), generation):
            number = dropped[0]
            raise DataError(
                f"the chat template leaves turn {number + 1} ({turns[number].role}) out: the model would never read it",
                where=where,
                got=turns[number].content[:60],
                expected="a template that renders every turn of the conversation",
                fix="put its words into a turn that the template renders, delete it, or set tokenizer.chat_template",
            )
        messages = [template_dict(turn, partial(self._guard_of(turn.role), where=where)) for turn in turns]
        return self._apply(messages, generation, where, template_tools(tools, partial(self.guard, where=where)))

    def guard_turn(self, turn: Message, where: str = "") -> str:
        """Returns the words of a turn as they are given to the template: with the markers in them broken up."""
        return self._guard_of(turn.role)(turn.content, where)

    def _guard_of(self, role: str) -> Guard:
        return self.guard_answer if role == "assistant" else self.guard

    def cut_end(self, text: str) -> tuple[str, str]:
        """Splits an assistant's rendered turn into (text with the end-of-turn token, the template's text after it)."""
        if text.endswith(self.suffix):
            words = text[: len(text) - len(self.suffix)]
            return words + self.end, self.rest
        # a template that writes the last turn in another way than the others
        words, end, rest = text.rpartition(self.end) if self.end else (text, "", "")
        return (words + end, rest) if end else (text + self.end, "")

    # ------------------------------------------------------------------------------------------ the template

    def _render(self, turns: Iterable[tuple[str, str]], generation: bool, where: str = "") -> str:
        return self._apply([{"role": role, "content": content} for role, content in turns], generation, where)

    def _apply(
        self, messages: list[dict[str, Any]], generation: bool, where: str, tools: list[Any] | None = None
    ) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=generation
            )
        except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                "the chat template rejects this conversation",
                where=where,
                got=f"{', '.join(message['role'] for message in messages)}: {error}",
                expected="turns that the model's chat template can render",
                fix="merge the system turn into the first user turn, let user and assistant alternate, "
                "or set tokenizer.chat_template",
            ) from error
        return text

    def _probed(self, roles: Sequence[str], generation: bool) -> str:
        """Renders a conversation of these roles whose words are probes."""
        return self._render([(role, f"{_PROBE}{i}X") for i, role in enumerate(roles)], generation)

    def _written(self, roles: Sequence[str], generation: bool) -> str:
        """Returns the template's own text in a conversation of these roles; empty if it rejects them."""
        try:
            text = self._probed(roles, generation)
        except DataError:
            return ""
        for i in range(len(roles)):
            text = text.replace(f"{_PROBE}{i}X", "\n")
        return text

    def _turns_left_out(self, roles: tuple[str, ...], generation: bool) -> tuple[int, ...]:
        """Returns the numbers of the turns that the template leaves out of a conversation of these roles."""
        if (roles, generation) not in self._dropped:
            try:
                text = self._probed(roles, generation)
            except DataError:  # reported with the row's own words
                return ()
            self._dropped[roles, generation] = tuple(i for i in range(len(roles)) if f"{_PROBE}{i}X" not in text)
        return self._dropped[roles, generation]

    def _template(self) -> str:
        template = self.tokenizer.chat_template
        return str(template.get("default", "")) if isinstance(template, dict) else str(template)

    def _frame(self) -> _Frame:
        """Renders a question and an answer; returns the template's text before and after the answer."""
        name = str(self.tokenizer.name_or_path)
        try:
            opened, plain = (self._render([("user", "Hi")], generation) for generation in (True, False))
            whole = self._render([("user", "Hi"), ("assistant", _PROBE)], False)
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
        prompt = opened[len(plain) :] if opened.startswith(plain) else ""
        return _Frame(prompt, before[len(opened) :] if before.startswith(opened) else "", suffix)

    def _complete(self, frame: _Frame) -> tuple[_Frame, str]:
        """Gives a template that ignores `add_generation_prompt` the header of its own turns as generation prompt."""
        header = frame.lead.rstrip(" ")  # the space goes with the first word, as tokenizers read it
        question = [("user", "Hi")]
        plain = self._render(question, False)
        if frame.prompt or not header.strip() or self._render(question, True) != plain:
            return frame, ""
        before = self.tokenizer.chat_template
        made = with_generation_prompt(self._template(), header)
        self.tokenizer.chat_template = {**before, "default": made} if isinstance(before, dict) else made
        if self._render(question, True) != plain + header or self._render(question, False) != plain:
            self.tokenizer.chat_template = before
            return frame, ""
        return self._frame(), header


def _without(tokens: Iterable[str], text: str) -> str:
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, "")
    return text
