"""Conversations planned as segments of text: the prompt, and what of each response is trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tiltyard.data.conversations import trained, without_weights
from tiltyard.data.message_fields import check_rendered
from tiltyard.data.rendering import Renderer
from tiltyard.data.turns import TURNS, turns_of
from tiltyard.errors import DataError
from tiltyard.types import Group, Message, Prompt

# keys of Response.meta
LAST_TURN_ONLY = "last_turn_only"  # the template rewrites history, so one turn is trained
HISTORY_REWRITTEN = "history_rewritten"  # the template shows earlier turns with other words (it strips their thinking)
AS_WRITTEN = "as_written"  # the template would change the answer's words: they are trained as they are


@dataclass(frozen=True, slots=True)
class Answer:
    """The text segments of a response, each with a flag (True if trained on), and flags for an appended eos and
    for words that the template would change."""

    segments: tuple[tuple[str, bool], ...]
    add_eos: bool
    as_written: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A group with the text of its prompt and the segments of its responses, before they are tokenised."""

    group: Group
    prompt: str
    answers: tuple[Answer, ...]


class Planner:
    """Plans groups and documents with a renderer; `whole_turn`: see `Chat`."""

    def __init__(self, renderer: Renderer, whole_turn: bool = False):
        self.renderer, self.whole_turn = renderer, whole_turn

    def plan(self, group: Group) -> Plan:
        """Plans a group.

        Raises:
            DataError: the template rejects the conversation, or rewrites the history of several answers to compare.
        """
        prompt = self.prompt_text(group.prompt, group.origin)
        if not group.prompt.messages:
            texts = (self.renderer.guard_answer(r.text, group.origin) for r in group.responses)
            return Plan(group, prompt, tuple(Answer(((text, True),), add_eos=True) for text in texts))
        answers, responses = [], []
        changed = self._rewritten(prompt, group.prompt.messages)
        for response in group.responses:
            turns = turns_of(response)
            self._check((*group.prompt.messages, *turns), group.prompt.tools, group.origin)
            answer = self._segments(prompt, group.prompt, turns, group.origin)
            if answer is None:
                if len(group.responses) == 1:
                    return self._last_turn_plan(group)
                raise DataError(
                    "the chat template rewrites earlier turns, so answers of several turns cannot be compared",
                    where=group.origin,
                    got=f"{len(turns_of(response))} turns in an answer",
                    expected="one assistant turn an answer",
                    fix="move the earlier turns into the prompt",
                )
            answers.append(answer)
            notes = {HISTORY_REWRITTEN: changed, AS_WRITTEN: answer.as_written}
            meta = {**response.meta, **{key: True for key, flag in notes.items() if flag}}
            responses.append(replace(response, meta=meta))
        return Plan(replace(group, responses=tuple(responses)), prompt, tuple(answers))

    def _rewritten(self, text: str, turns: tuple[Message, ...]) -> bool:
        """True if a rendering holds a turn with other words (white space around them apart)."""
        return any(self.renderer.guard_turn(turn).strip() not in text for turn in turns)

    def _last_turn_plan(self, group: Group) -> Plan:
        """Plans a group of which everything before the last answer becomes prompt, as when the model is used."""
        response, before = group.responses[0], group.prompt.messages or ()
        turns = turns_of(response)
        place = max(number for number, turn in enumerate(turns) if trained(turn))
        last = turns[place]
        prompt = replace(group.prompt, messages=(*before, *without_weights(turns[:place])))
        meta = {key: value for key, value in response.meta.items() if key != TURNS} | {LAST_TURN_ONLY: True}
        meta |= {TURNS: [last.to_dict()]} if last.more else {}
        single = replace(group, prompt=prompt, responses=(replace(response, text=last.content, meta=meta),))
        return self.plan(single)

    def _check(self, turns: tuple[Message, ...], tools: str, where: str, *, generation: bool = False) -> None:
        """Checks that the template renders all that the turns have."""
        check_rendered(
            lambda some, given: self.renderer.render(some, generation=generation, where=where, tools=given),
            turns,
            tools,
            where,
        )

    def _segments(self, prompt: str, asked: Prompt, turns: tuple[Message, ...], where: str) -> Answer | None:
        """Returns the segments after `prompt`; None if a later rendering does not begin with an earlier one."""
        done, rest = prompt, ""
        found: list[tuple[str, bool]] = []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            history, tools = (*(asked.messages or ()), *turns[:number]), asked.tools
            if number:
                opened = self.renderer.render(history, generation=True, where=where, tools=tools)
                if not opened.startswith(done):
                    return None
                found.append((rest + opened[len(done) :], False))
                done = opened
            closed = self.renderer.render((*history, turn), generation=False, where=where, tools=tools)
            # an answer may begin with what the generation prompt has opened (its thinking)
            shown = closed[max(0, len(done) - len(self.renderer.prompt)) :]
            if closed.startswith(done) and self.renderer.guard_turn(turn, where).strip() in shown:
                words, rest = self.renderer.cut_end(closed[len(done) :])
            elif len(turns) == 1 and turn.more:
                raise DataError(
                    "the chat template writes an answer with further fields in another way than it asks for one",
                    where=where,
                    got=f"fields {', '.join(turn.extra)}; the generation prompt is no part of the finished turn",
                    expected="a rendering that begins with the prompt",
                    fix="write the answer's text as it is to be learnt, or set tokenizer.chat_template",
                )
            elif len(turns) == 1:  # what the model would write after this prompt, and the end of its turn
                return self._as_written(prompt, closed, turn, where)
            else:
                return None
            found.append((words, trained(turn)))
            done = closed
        if self.whole_turn and turns[-1].role == "assistant":
            found[-1] = (found[-1][0] + rest, found[-1][1])
        return Answer(tuple(found), add_eos=not self.renderer.end and not self.whole_turn)

    def _as_written(self, prompt: str, closed: str, turn: Message, where: str) -> Answer:
        """Returns the answer's own words, where the template shows a finished turn in another way.

        Either the generation prompt is not part of a finished turn (it opens the thinking), or the template leaves
        words of a finished turn out (it strips the thinking). What the prompt has opened is not opened twice.
        """
        text = self.renderer.guard_turn(turn, where)
        changed = text.strip() not in closed
        same = next((i for i, (a, b) in enumerate(zip(prompt, closed, strict=False)) if a != b), len(closed))
        opened = prompt[same:]
        if opened.strip() and text.lstrip().startswith(opened.strip()):
            text = text.lstrip()[len(opened.strip()) :]
            text = text.removeprefix("\n") if opened.endswith("\n") else text
        lead = self.renderer.lead if self.renderer.lead.isspace() else ""
        end = self.renderer.suffix if self.whole_turn else self.renderer.end
        return Answer(((lead + text + end, True),), not self.renderer.end and not self.whole_turn, changed)

    def prompt_text(self, prompt: Prompt, where: str = "") -> str:
        """Returns the text of a prompt, generation prompt included."""
        if prompt.messages:
            where = where or prompt.id
            self._check(prompt.messages, prompt.tools, where, generation=True)
            return self.renderer.render(prompt.messages, generation=True, where=where, tools=prompt.tools)
        if prompt.text is None:
            raise DataError("a prompt with neither messages nor text", where=where or prompt.id, fix="set one of them")
        return prompt.text

    def document_text(self, group: Group) -> str:
        """Returns the text of a document, without an end of its own."""
        response = group.responses[0]
        if TURNS not in response.meta:
            return self.renderer.guard(response.text, group.origin)
        turns, tools = turns_of(response), group.prompt.tools
        self._check(turns, tools, group.origin)
        text = self.renderer.render(turns, generation=False, where=group.origin, tools=tools)
        return self.renderer.cut_end(text)[0] if turns[-1].role == "assistant" else text
