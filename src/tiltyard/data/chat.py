"""`Chat`: the one place where text becomes token ids.

A conversation is tokenised in segments: everything up to and including the generation prompt, then the assistant's
text with the end-of-turn token, then (several turns) what follows up to the next generation prompt, and so on. The
first segment is tokenised exactly as it is at sampling time, so prompt ids are the same in training and in sampling,
and where a response begins and ends is known from lengths. No id is ever compared with pad or eos to make a mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tiltyard.data.formats import TURNS
from tiltyard.data.templates import default_for
from tiltyard.data.tokenizer import encodings_of, first_char
from tiltyard.errors import DataError, ModelError
from tiltyard.types import Group, Message, Prompt, Response

LAST_TURN_ONLY = "last_turn_only"  # key of Response.meta: the template rewrites history, so one turn is trained

_PROBE = "TILTYARDPROBE"
# A Unicode noncharacter: inserted into special tokens that occur in a text, so that they remain plain text.
_BREAK = "\ufdd0"
_BATCH = 2048  # texts a call of the tokenizer: bounds the memory of its encodings


@dataclass(frozen=True, slots=True)
class _Answer:
    """The text segments of a response, each with a flag (True if trained on), and a flag for an appended eos."""

    segments: tuple[tuple[str, bool], ...]
    add_eos: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    group: Group
    prompt: str
    answers: tuple[_Answer, ...]


class Chat:
    """A tokenizer with its chat template.

    A tokenizer without a template is given one (`DEFAULT_TEMPLATE` if it has the turn tokens, else `PLAIN_TEMPLATE`),
    so that a model saved with it uses the same template in transformers and vLLM as in training.

    Attributes:
        stop_ids: ids that end an answer: eos, and the template's end-of-turn token.
        pad_id: for rectangular tensors; it may equal eos, since no mask is made by comparing with it.
        max_length: default limit of `load` in tokens of prompt + response; None is no limit.

    Raises:
        ModelError: the tokenizer has no eos token, or its template cannot render a question and an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None):
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no eos token, so no answer could ever end",
                where=str(tokenizer.name_or_path),
                expected="eos_token set",
                fix="set tokenizer.eos_token to a token of the vocabulary and save the tokenizer again",
            )
        self.tokenizer = cast(Any, tokenizer)  # half of its methods depend on the family
        self.max_length = max_length
        if tokenizer.chat_template is None:
            tokenizer.chat_template = default_for(tokenizer.get_vocab())
        self.eos_id = int(self.tokenizer.eos_token_id)
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else int(self.tokenizer.pad_token_id)
        bos = self.tokenizer.bos_token_id
        self.start_id = self.eos_id if bos is None else int(bos)
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        special |= set(tokenizer.all_special_tokens)
        self._special = re.compile("|".join(re.escape(t) for t in sorted(special, key=len, reverse=True)))
        self._ints = list(range(len(tokenizer)))  # one int object an id: a corpus takes a fifth of the memory
        self._anchor, self._anchor_ids = self._find_anchor()
        self._lead, self._suffix, self._end, end_token = self._find_frame()
        ends = {int(self.tokenizer.convert_tokens_to_ids(end_token))} if end_token else set()
        self._rest = self._suffix[len(self._end) :]
        if end_token and len(self._call([end_token + self._rest])["input_ids"][0]) == 1:
            self._rest = ""  # the token swallows what follows it (Phi-3's newline), so sampling never sees it either
        self.stop_ids: frozenset[int] = frozenset({self.eos_id} | ends)

    # ------------------------------------------------------------------------------------------ encoding and decoding

    def encode_prompt(self, prompt: Prompt) -> Prompt:
        """Returns the prompt with `ids`, generation prompt included. A prompt that has ids is returned as it is.

        A text prompt starts with bos, or with eos as the start of a document where the tokenizer has no bos.
        """
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Encodes many prompts at once, which is faster than one by one."""
        todo = [p for p in prompts if not p.ids]
        ids = iter(self._tokenize([(self._prompt_text(p), False) for p in todo]))
        return [p if p.ids else replace(p, ids=self._started(p, next(ids))) for p in prompts]

    def encode_group(self, group: Group) -> Group:
        """Returns the group with ids of its prompt and responses; each response ends with the end-of-turn or eos id.

        In an answer of several turns `loss_spans` marks the assistant's text and end-of-turn tokens. If the template
        rewrites earlier turns (as those do that strip thinking), all but the last answer becomes prompt.
        A group that has ids already (it was sampled) is returned as it is.

        Raises:
            DataError: the template rejects the conversation, or rewrites the history of several answers to compare.
        """
        return self.encode_groups([group])[0]

    def encode_groups(self, groups: Sequence[Group]) -> list[Group]:
        """Encodes many groups at once, which is faster than one by one."""
        plans = [None if _has_ids(g) else self._plan(g) for g in groups]
        texts: list[tuple[str, bool]] = []
        for plan in plans:
            if plan is not None:
                texts.append((plan.prompt, False))
                texts.extend((text, True) for answer in plan.answers for text, _ in answer.segments)
        ids = iter(self._tokenize(texts))
        return [g if plan is None else self._assemble(plan, ids) for g, plan in zip(groups, plans, strict=True)]

    def encode_document(self, group: Group) -> Group:
        """Encodes a document for pretraining: the prompt is the document-start id, the response all tokens and eos.

        A conversation is rendered with the template. `Response.text` is then the text that was tokenised.
        """
        return self.encode_documents([group])[0][0]

    def encode_documents(self, groups: Sequence[Group], max_length: int | None = None) -> list[list[Group]]:
        """Returns for each document its consecutive pieces of at most `max_length` tokens, document-start id included.

        The pieces' texts joined are the document's text, and their ids joined are its ids: nothing is lost. (Where a
        document spells out special tokens, the texts of its pieces are decoded and may show half characters as U+FFFD.)
        """
        if max_length is not None and max_length < 4:
            raise DataError(
                "max_length is too short for documents", got=max_length, expected="at least 4", fix="raise it"
            )
        texts = [self._document_text(g) for g in groups]
        found: list[list[Group]] = []
        for start in range(0, len(texts), _BATCH):
            batch = texts[start : start + _BATCH]
            encoded = self._call(batch)
            rows = zip(groups[start : start + _BATCH], batch, encoded["input_ids"], strict=True)
            for (group, text, ids), encoding in zip(rows, encodings_of(encoded), strict=False):
                if _BREAK in text:  # tokenised again in parts, so the encoding's offsets are of no use
                    found.append(self._pieces(group, text, self._tokenize([(text, False)])[0], None, max_length))
                else:
                    found.append(self._pieces(group, text, self._shared(ids), encoding, max_length))
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes a response: no special tokens, and without the text that the template adds before and after it."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = text.removeprefix(self._lead)
        return text.removesuffix(self._special.sub("", self._end))

    # ------------------------------------------------------------------------------------------ rendering

    def _render(self, turns: Sequence[Message], *, generation: bool, where: str = "") -> str:
        messages = [{"role": turn.role, "content": self._guard(turn.content)} for turn in turns]
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

    def _guard(self, text: str) -> str:
        """Returns the text with special tokens broken up: a user's text must not end a turn or open another."""
        return self._special.sub(lambda found: found[0][0] + _BREAK + found[0][1:], text)

    def _find_frame(self) -> tuple[str, str, str, str]:
        """Returns the template's text before a response, after it, after it up to end-of-turn, and that token."""
        question = [Message("user", "Hi")]
        name = str(self.tokenizer.name_or_path)
        try:
            opened = self._render(question, generation=True)
            whole = self._render([*question, Message("assistant", _PROBE)], generation=False)
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
        found = self._special.search(suffix)
        end, token = (suffix[: found.end()], found[0]) if found else ("", "")
        return before[len(opened) :] if before.startswith(opened) else "", suffix, end, token

    def _prompt_text(self, prompt: Prompt, where: str = "") -> str:
        if prompt.messages:
            return self._render(prompt.messages, generation=True, where=where or prompt.id)
        if prompt.text is None:
            raise DataError("a prompt with neither messages nor text", where=where or prompt.id, fix="set one of them")
        return prompt.text

    def _document_text(self, group: Group) -> str:
        response = group.responses[0]
        if TURNS not in response.meta:
            return self._guard(response.text)
        turns = _turns(response)
        text = self._render(turns, generation=False, where=group.origin)
        return self._cut_end(text)[0] if turns[-1].role == "assistant" else text

    # ------------------------------------------------------------------------------------------ segments

    def _plan(self, group: Group) -> _Plan:
        prompt = self._prompt_text(group.prompt, group.origin)
        if not group.prompt.messages:
            whole = tuple(_Answer(((self._guard(r.text), True),), add_eos=True) for r in group.responses)
            return _Plan(group, prompt, whole)
        answers = []
        for response in group.responses:
            answer = self._segments(prompt, group.prompt.messages, _turns(response), group.origin)
            if answer is None:
                if len(group.responses) == 1:
                    return self._last_turn_plan(group)
                raise DataError(
                    "the chat template rewrites earlier turns, so answers of several turns cannot be compared",
                    where=group.origin,
                    got=f"{len(_turns(response))} turns in an answer",
                    expected="one assistant turn an answer",
                    fix="move the earlier turns into the prompt",
                )
            answers.append(answer)
        return _Plan(group, prompt, tuple(answers))

    def _last_turn_plan(self, group: Group) -> _Plan:
        """Plans a group of which everything before the last answer becomes prompt, as when the model is used."""
        response, before = group.responses[0], group.prompt.messages or ()
        *earlier, last = _turns(response)
        prompt = replace(group.prompt, messages=(*before, *earlier))
        meta = {key: value for key, value in response.meta.items() if key != TURNS} | {LAST_TURN_ONLY: True}
        single = replace(group, prompt=prompt, responses=(replace(response, text=last.content, meta=meta),))
        return self._plan(single)

    def _segments(
        self, prompt: str, messages: tuple[Message, ...], turns: tuple[Message, ...], where: str
    ) -> _Answer | None:
        """Returns the segments after `prompt`; None if a later rendering does not begin with an earlier one."""
        done, rest = prompt, ""
        found: list[tuple[str, bool]] = []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            history = (*messages, *turns[:number])
            if number:
                opened = self._render(history, generation=True, where=where)
                if not opened.startswith(done):
                    return None
                found.append((rest + opened[len(done) :], False))
                done = opened
            closed = self._render((*history, turn), generation=False, where=where)
            if closed.startswith(done):
                words, rest = self._cut_end(closed[len(done) :])
            elif len(turns) == 1:
                # the generation prompt is not part of a finished turn (it may open the thinking): append the turn's end
                words, rest = self._guard(turn.content) + self._end, ""
            else:
                return None
            found.append((words, True))
            done = closed
        return _Answer(tuple(found), add_eos=not self._end)

    def _cut_end(self, text: str) -> tuple[str, str]:
        """Splits an assistant's rendered turn into (text with the end-of-turn token, the template's text after it)."""
        if text.endswith(self._suffix):
            words = text[: len(text) - len(self._suffix)]
            return words + self._end, self._rest
        # a template that writes the last turn in another way than the others
        words, end, rest = text.rpartition(self._end) if self._end else (text, "", "")
        return (words + end, rest) if end else (text + self._end, "")

    def _assemble(self, plan: _Plan, ids: Iterator[tuple[int, ...]]) -> Group:
        prompt = replace(plan.group.prompt, ids=self._started(plan.group.prompt, next(ids)))
        responses = []
        for response, answer in zip(plan.group.responses, plan.answers, strict=True):
            tokens: list[int] = []
            spans = []
            for _, trained in answer.segments:
                start = len(tokens)
                tokens.extend(next(ids))
                if trained:
                    spans.append((start, len(tokens)))
            if answer.add_eos:
                tokens.append(self.eos_id)
                spans[-1] = (spans[-1][0], len(tokens))
            loss_spans = tuple(spans) if len(answer.segments) > 1 else None
            responses.append(replace(response, ids=tuple(tokens), loss_spans=loss_spans))
        return replace(plan.group, prompt=prompt, responses=tuple(responses))

    def _pieces(
        self, group: Group, text: str, ids: tuple[int, ...], encoding: Any, max_length: int | None
    ) -> list[Group]:
        dropped = int(ids[:1] == (self.start_id,))  # a template may write bos itself
        body = ids[dropped:] if ids[-1:] == (self.eos_id,) else (*ids[dropped:], self.eos_id)
        response, prompt = group.responses[0], replace(group.prompt, ids=(self.start_id,))
        size = len(body) if max_length is None else max_length - 1
        starts = list(range(0, len(body), size))
        if len(starts) > 1 and len(body) - starts[-1] == 1:
            starts[-1] -= 1  # a piece of eos alone would teach that documents are empty
        pieces = []
        # characters where the pieces begin; a token may be part of a character, which then goes with its first token
        chars = [0, *(first_char(encoding, at + dropped) for at in starts[1:]), len(text)]
        for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(body)], strict=True)):
            last = number == len(starts) - 1
            if len(starts) == 1:
                words = text.replace(_BREAK, "")
            elif encoding is None:
                words = self.tokenizer.decode(list(body[start : stop - last]), clean_up_tokenization_spaces=False)
            else:
                words = text[chars[number] : chars[number + 1]]
            piece = replace(response, ids=body[start:stop], text=words, finish="given" if last else "length")
            name = replace(prompt, id=f"{prompt.id}.{number}") if len(starts) > 1 else prompt
            pieces.append(replace(group, prompt=name, responses=(piece,)))
        return pieces

    # ------------------------------------------------------------------------------------------ ids

    def _started(self, prompt: Prompt, ids: tuple[int, ...]) -> tuple[int, ...]:
        if prompt.messages:
            if not ids:
                raise DataError(
                    "the chat template rendered nothing", where=prompt.id, fix="correct tokenizer.chat_template"
                )
            return ids
        return ids if ids[:1] == (self.start_id,) else (self.start_id, *ids)

    def _call(self, texts: list[str]) -> Any:
        # never add_special_tokens: bos and eos come from the template or from here, so there are never two
        return self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )

    def _shared(self, ids: Iterable[int]) -> tuple[int, ...]:
        return tuple(map(self._ints.__getitem__, ids))

    def _tokenize(self, texts: Sequence[tuple[str, bool]]) -> list[tuple[int, ...]]:
        """Tokenizes texts; the flag marks a text that continues a previous segment."""
        parts = [
            [(part, follows or i > 0) for i, part in enumerate(text.split(_BREAK)) if part] for text, follows in texts
        ]
        unique = list(dict.fromkeys(chain.from_iterable(parts)))  # pairs repeat their prompts
        ids: dict[tuple[str, bool], tuple[int, ...]] = {}
        for start in range(0, len(unique), _BATCH):
            batch = unique[start : start + _BATCH]
            encoded = self._call([self._anchor + text if follows else text for text, follows in batch])["input_ids"]
            for key, found in zip(batch, encoded, strict=True):
                cut = len(self._anchor_ids) if key[1] else 0
                if cut and tuple(found[:cut]) != self._anchor_ids:
                    found, cut = self._call([key[0]])["input_ids"][0], 0
                ids[key] = self._shared(found[cut:])
        return [tuple(chain.from_iterable(ids[part] for part in text)) for text in parts]

    def _find_anchor(self) -> tuple[str, tuple[int, ...]]:
        """Finds a text to put before a continuing segment, for tokenizers that put a space before every text.

        SentencePiece-style tokenizers read "word" as " word". A segment that continues must not get that space, so it
        is tokenised behind a newline whose ids are then cut off.
        """
        plain, spaced = (self.tokenizer.tokenize(text) for text in ("word", " word"))
        if plain[:1] != spaced[:1] and not plain[0].startswith(("\u2581", "\u0120")):
            return "", ()
        return "\n", tuple(self._call(["\n"])["input_ids"][0])


def _has_ids(group: Group) -> bool:
    return bool(group.prompt.ids) and all(r.ids for r in group.responses)


def _turns(response: Response) -> tuple[Message, ...]:
    turns = response.meta.get(TURNS)
    if not turns:
        return (Message("assistant", response.text),)
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)
