"""`Chat`: the one place where text becomes token ids.

A conversation is tokenised in segments: everything up to and including the generation prompt, then the assistant's
text with the end-of-turn token, then (several turns) what follows up to the next generation prompt, and so on. The
first segment is tokenised exactly as it is at sampling time, so prompt ids are the same in training and in sampling,
and where a response begins and ends is known from lengths. No id is ever compared with pad or eos to make a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from tiltyard.data.rendering import Renderer
from tiltyard.data.segments import Plan, Planner
from tiltyard.data.templates import default_for
from tiltyard.data.text_ids import BATCH, TextEncoder, is_guarded
from tiltyard.data.tokenizer import encodings_of, first_char
from tiltyard.errors import DataError, ModelError
from tiltyard.types import Group, Prompt


class Chat:
    """A tokenizer with its chat template.

    A tokenizer without a template is given one (`DEFAULT_TEMPLATE` if it has the turn tokens, else `PLAIN_TEMPLATE`),
    so that a model saved with it uses the same template in transformers and vLLM as in training.

    Attributes:
        stop_ids: ids that end an answer: eos, and the template's end-of-turn token.
        completed: the generation prompt that was added to a template without one, see `Renderer`; else empty.
        pad_id: for rectangular tensors; it may equal eos, since no mask is made by comparing with it.
        whole_turn: a response ends with all that the template writes behind it (the newline behind ChatML's end of
            turn), as transformers renders a conversation: classifiers of others read their score there. False where
            there is nothing.
        default_template: the tokenizer had no template of its own.
        max_length: default limit of `load` in tokens of prompt + response; None is no limit.

    Raises:
        ModelError: the tokenizer has no eos token, or its template cannot render a question and an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None, whole_turn: bool = False):
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no eos token, so no answer could ever end",
                where=str(tokenizer.name_or_path),
                expected="eos_token set",
                fix="set tokenizer.eos_token to a token of the vocabulary and save the tokenizer again",
            )
        self.tokenizer = cast(Any, tokenizer)  # half of its methods depend on the family
        self.max_length = max_length
        self.default_template = tokenizer.chat_template is None
        if tokenizer.chat_template is None:
            tokenizer.chat_template = default_for(tokenizer.get_vocab())
        self.eos_id = int(self.tokenizer.eos_token_id)
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else int(self.tokenizer.pad_token_id)
        bos = self.tokenizer.bos_token_id
        self.start_id = self.eos_id if bos is None else int(bos)
        self._encoder = TextEncoder(tokenizer)
        self._renderer = Renderer(tokenizer, self._encoder)
        self.whole_turn = whole_turn and bool(self._renderer.rest or not self._renderer.end)
        self._planner = Planner(self._renderer, self.whole_turn)
        self.completed = self._renderer.completed
        ends = () if self._renderer.end_id is None else (self._renderer.end_id,)
        self.stop_ids: frozenset[int] = frozenset((self.eos_id, *ends))

    @property
    def notes(self) -> tuple[str, ...]:
        """Facts about the template that a stage prints."""
        header = f"completed with the generation prompt {self.completed!r}, which its own turns begin with"
        return (header,) if self.completed else ()

    @property
    def shown_ends(self) -> tuple[str, str]:
        """The words that the template puts before and after a response, which `decode` leaves out."""
        return self._renderer.shown_lead, self._renderer.shown_tail

    # ------------------------------------------------------------------------------------------ encoding and decoding

    def encode_prompt(self, prompt: Prompt) -> Prompt:
        """Returns the prompt with `ids`, generation prompt included. A prompt that has ids is returned as it is.

        A text prompt starts with bos, or with eos as the start of a document where the tokenizer has no bos.
        """
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Encodes many prompts at once, which is faster than one by one."""
        todo = [p for p in prompts if not p.ids]
        ids = iter(self._encoder([(self._planner.prompt_text(p), False) for p in todo]))
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
        plans = [None if _has_ids(g) else self._planner.plan(g) for g in groups]
        texts: list[tuple[str, bool]] = []
        for plan in plans:
            if plan is not None:
                texts.append((plan.prompt, False))
                texts.extend((text, True) for answer in plan.answers for text, _ in answer.segments)
        ids = iter(self._encoder(texts))
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
        texts = [self._planner.document_text(g) for g in groups]
        found: list[list[Group]] = []
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            encoded = self._encoder.call(batch)
            rows = zip(groups[start : start + BATCH], batch, encoded["input_ids"], strict=True)
            for (group, text, ids), encoding in zip(rows, encodings_of(encoded), strict=False):
                if is_guarded(text):  # tokenised again in parts, so the encoding's offsets are of no use
                    found.append(self._pieces(group, text, self._encoder([(text, False)])[0], None, max_length))
                else:
                    found.append(self._pieces(group, text, self._encoder.shared(ids), encoding, max_length))
        return found

    def encode_continuations(self, groups: Sequence[Group]) -> list[Group]:
        """Encodes plain texts with several continuations each, such as a question with its choices, without an end.

        Prompt and continuation are tokenised as one text, with the special tokens that the tokenizer itself puts before
        a text, and cut where the ids of the prompt alone end; spaces at the prompt's end go to the continuation. This
        is how evaluation harnesses do it (lm-eval, `TemplateLM._encode_pair`).

        Raises:
            DataError: a continuation that leaves no token of its own.
        """
        contexts = [(g.prompt.text or "").rstrip() for g in groups]
        wholes = [(g.prompt.text or "") + response.text for g in groups for response in g.responses]
        encoded = iter(self._as_texts([*contexts, *wholes]))
        before = [next(encoded) for _ in groups]
        found = []
        for group, ids in zip(groups, before, strict=True):
            responses = tuple(replace(r, ids=next(encoded)[len(ids) :]) for r in group.responses)
            if not ids or not all(r.ids for r in responses):
                raise DataError(
                    "a choice has no token of its own",
                    where=group.origin,
                    got=repr(next((r.text for r in responses if not r.ids), group.prompt.text))[:80],
                    expected="a question, and choices that are texts",
                )
            found.append(replace(group, prompt=replace(group.prompt, ids=ids), responses=responses))
        return found

    def _as_texts(self, texts: list[str]) -> list[tuple[int, ...]]:
        """Tokenizes whole texts as the tokenizer does by itself, without an end token."""
        rows: list[list[int]] = self.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
        return [tuple(ids[:-1] if ids[-1:] == [self.eos_id] and len(ids) > 1 else ids) for ids in rows]

    def decode(self, ids: Sequence[int], *, turn: bool = True) -> str:
        """Decodes a response: no special tokens, and without the text that the template adds before and after it.

        Args:
            turn: False for the continuation of a plain text, to which no template added anything.
        """
        kept, ended = list(ids), bool(ids) and ids[-1] in self.stop_ids
        if ended:  # an end-of-turn token need not be a special one, which decoding leaves out
            kept.pop()
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if not turn:
            return text
        lead, tail = self.shown_ends
        text = text.removeprefix(lead)
        return text.removesuffix(tail) if ended else text

    # ------------------------------------------------------------------------------------------ ids

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
                words = self._encoder.unguarded(text)
            elif encoding is None:
                words = self.tokenizer.decode(list(body[start : stop - last]), clean_up_tokenization_spaces=False)
            else:
                words = text[chars[number] : chars[number + 1]]
            piece = replace(response, ids=body[start:stop], text=words, finish="given" if last else "length")
            name = replace(prompt, id=f"{prompt.id}.{number}") if len(starts) > 1 else prompt
            pieces.append(replace(group, prompt=name, responses=(piece,)))
        return pieces

    def _assemble(self, plan: Plan, ids: Iterator[tuple[int, ...]]) -> Group:
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
                if answer.segments[-1][1]:
                    spans[-1] = (spans[-1][0], len(tokens))
            loss_spans = tuple(spans) if len(answer.segments) > 1 else None
            responses.append(replace(response, ids=tuple(tokens), loss_spans=loss_spans))
        return replace(plan.group, prompt=prompt, responses=tuple(responses))

    # ------------------------------------------------------------------------------------------ ids

    def _started(self, prompt: Prompt, ids: tuple[int, ...]) -> tuple[int, ...]:
        if prompt.messages:
            if not ids:
                raise DataError(
                    "the chat template rendered nothing", where=prompt.id, fix="correct tokenizer.chat_template"
                )
            return ids
        return ids if ids[:1] == (self.start_id,) else (self.start_id, *ids)


def _has_ids(group: Group) -> bool:
    return bool(group.prompt.ids) and all(r.ids for r in group.responses)
