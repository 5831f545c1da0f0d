"""New prompts: a model that does not change writes questions after the pattern of given ones (self-instruct).

Each request shows some of the given prompts, drawn anew, as a numbered list that the model goes on with; the first line
of what it writes is the new prompt. One that is too short or too long, holds a blocked word, repeats a prompt or is too
like one (ROUGE-L over words) is left out, and counted by its reason.

`prompts.jsonl` holds what was taken, each with the request that it comes from, the prompts shown there and how like its
nearest neighbour it is; `rejected.jsonl` the rest, with the reason. What a request draws depends on the seed and on its
number alone. The work is done in blocks, each committed to a `Journal`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tiltyard.data import BadRows, limit_of, parsed_rows, read_rows
from tiltyard.data.overlap import most_alike, words_of
from tiltyard.errors import DataError
from tiltyard.feedback.prompts import question_prompt
from tiltyard.feedback.simulated import seed_from
from tiltyard.inputs.settings import RowReading
from tiltyard.inputs.workspace import model_folder
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import load_language_model
from tiltyard.numerals import plural
from tiltyard.records import LAST_BITS
from tiltyard.runs.journal import Journal
from tiltyard.sampling import SampleSettings, response_seeds, sample
from tiltyard.stages.backend import report_model
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.training.log import TimeLeft
from tiltyard.types import Prompt

BLOCK = 16  # requests at a time; part of what the random numbers depend on, so no setting
PROMPTS, REJECTED = "prompts.jsonl", "rejected.jsonl"
INSTRUCTION = "Here are things that people asked. Write one more of the same kind, in one line.\n\n"


class NewPromptsSettings(RowReading):
    model: Annotated[str, Field(description="who writes: best one that stays the same, such as the first SFT model")]
    prompts: Annotated[str, Field(description="the given prompts: a file, stage/file or hub name")]
    count: Annotated[int, Field(ge=1, description="new prompts wanted")]
    requests: Annotated[int, Field(ge=0, description="ask at most so often; 0: 20 times the count")] = 0
    shots: Annotated[int, Field(ge=1, description="given prompts shown a request [self-rewarding]")] = 8
    style: Annotated[Literal["chat", "text"], Field(description="ask in the chat template, or as plain text")] = "text"
    temperature: Annotated[float, Field(gt=0, description="of sampling [self-rewarding]")] = 0.6
    top_p: Annotated[float, Field(gt=0, le=1, description="mass of the most probable tokens kept [self-rewarding]")] = (
        0.9
    )
    max_tokens: Annotated[int, Field(gt=0, description="longest line")] = 64
    max_concurrent: Annotated[int, Field(gt=0, description="lines decoded at once; bounds memory only"), LAST_BITS] = (
        256
    )
    similarity: Annotated[
        float, Field(gt=0, le=1, description="ROUGE-L to every prompt, given or new, must be below [self-instruct]")
    ] = 0.7
    min_words: Annotated[int, Field(ge=1, description="words of a prompt, at least")] = 3
    max_words: Annotated[int, Field(ge=1, description="words of a prompt, at most")] = 150
    blocked: Annotated[
        list[str], Field(description="words that no prompt may hold, such as those that ask for what no text can do")
    ] = ["image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps"]
    seed: Annotated[int, Field(ge=0, description="of the examples and of sampling")] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda"), LAST_BITS] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float64"], Field(description="arithmetic")] = "float32"

    @model_validator(mode="after")
    def _lengths(self) -> NewPromptsSettings:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words ({self.min_words}) is above max_words ({self.max_words})")
        return self


@dataclass
class Progress:
    """Requests that are done, lines of the two files, and the count of each reason."""

    requests: int = 0
    accepted: int = 0
    rejected: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A given prompt of one turn, as the model sees it."""

    id: str
    text: str


def run(context: StageContext, settings: NewPromptsSettings) -> dict[str, Any]:
    """Sends requests block by block, from where an earlier attempt stopped, until enough prompts are accepted."""
    model = load_language_model(model_folder(context, settings.model), device=settings.device, dtype=settings.dtype)
    report_model(context, "model", model, samples=True)
    given, examples = _given(context, settings)
    journal = Journal(context.folder, (PROMPTS, REJECTED), Progress())
    progress = journal.progress
    prompt_filter = PromptFilter(settings, given)
    for accepted_row in read_rows(context.folder / PROMPTS) if progress.accepted else ():
        prompt_filter.add(accepted_row.value["prompt"])
    most = settings.requests or 20 * settings.count
    if journal.resumed:
        context.report(
            "goes on", [f"{plural(progress.requests, 'request')} done, {plural(progress.accepted, 'prompt')} accepted"]
        )
    left = TimeLeft(settings.count)
    while progress.requests < most and progress.accepted < settings.count:
        first = progress.requests
        size = min(BLOCK, most - first)
        accepted: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        for number, (shots, text) in enumerate(_generate(model, examples, settings, first, size), first):
            if progress.accepted + len(accepted) == settings.count:
                break  # the count is reached: the rest of the block is left out
            progress.requests += 1
            row = {"request": number, "shots": [e.id for e in shots], "model": settings.model}
            _add_row(prompt_filter, text, row, progress, accepted, rejected)
        progress.accepted += len(accepted)
        progress.rejected += len(rejected)
        journal.commit({PROMPTS: accepted, REJECTED: rejected})
        done = f"{progress.accepted:,} of {settings.count:,} after {progress.requests:,} requests"
        context.report("new", [", ".join(filter(None, (done, left.after(progress.accepted))))])
    journal.close()
    return _result(context, settings, progress)


def _add_row(
    prompt_filter: PromptFilter,
    text: str | None,
    row: dict[str, Any],
    progress: Progress,
    accepted: list[dict[str, Any]],
    rejected: list[dict[str, Any]],
) -> None:
    """Appends the row of a request to the accepted or to the rejected."""
    line = "" if text is None else first_line(text)
    reason, likeness, like = ("request too long", 0.0, "") if text is None else prompt_filter(line)
    if reason:
        progress.reasons[reason] = progress.reasons.get(reason, 0) + 1
        rejected.append({"text": line, "reason": reason, "similarity": likeness, "like": like, **row})
        return
    prompt_filter.add(line)
    meta = {"similarity": likeness, "like": like, **row}
    accepted.append({"id": f"new-{row['request']:06d}", "prompt": line, "meta": meta})


def _result(context: StageContext, settings: NewPromptsSettings, progress: Progress) -> dict[str, Any]:
    lines = [f"{reason}: {count:,}" for reason, count in sorted(progress.reasons.items())]
    context.report("rejected", lines or ["nothing"])
    if not progress.accepted:
        raise DataError(
            "no new prompt passed",
            where=str(context.folder / REJECTED),
            got="; ".join(lines),
            fix="read some of the rejected ones; take a stronger model, other limits, or more requests",
        )
    if progress.accepted < settings.count:
        missing = settings.count - progress.accepted
        context.report("new", [f"{missing:,} fewer than `count`: the requests are used up (set requests)"])
    return {"requests": progress.requests, "prompts": progress.accepted, "rejected": dict(progress.reasons)}


# ------------------------------------------------------------------------------------------------------ the requests


def _given(context: StageContext, settings: NewPromptsSettings) -> tuple[list[str], list[Example]]:
    """Returns the texts of all given prompts, and those of one turn as examples."""
    path = context.resolve(settings.prompts, want="")
    bad = BadRows(settings.bad_rows)
    limit = limit_of(settings.limit, settings.limit_by, settings.seed)
    rows = parsed_rows(path, "prompts", bad, split=settings.split or None, limit=limit)
    prompts = [group.prompt for _, group in rows]
    texts = [p.messages[-1].content if p.messages else p.text or "" for p in prompts]
    examples = [
        Example(p.id, " ".join(text.split()))
        for p, text in zip(prompts, texts, strict=True)
        if (p.messages is None or len(p.messages) == 1) and text.strip()
    ]
    lines = [f"{len(prompts):,} given, {len(examples):,} of one turn, used as examples", *bad.lines()]
    context.report("prompts", lines)
    if len(examples) < settings.shots:
        raise DataError(
            "there are fewer examples than a request shows",
            where=settings.prompts,
            got=f"{len(examples):,} prompts of one turn",
            expected=f"at least shots = {settings.shots}",
            fix="lower shots, or give more prompts",
        )
    return texts, examples


def request(shots: Sequence[Example], style: str) -> Prompt:
    """Returns the prompt for one more: a numbered list that ends with the next number."""
    listed = "".join(f"{i}. {one.text}\n" for i, one in enumerate(shots, 1))
    head = INSTRUCTION if style == "chat" else ""
    return question_prompt(f"{head}{listed}{len(shots) + 1}.", style)


def _generate(
    model: LanguageModel, examples: Sequence[Example], settings: NewPromptsSettings, first: int, size: int
) -> list[tuple[list[Example], str | None]]:
    """Returns the shots and the generated text of each request; None where the context is too short."""
    shots = [
        random.Random(seed_from(settings.seed, "shots", number)).sample(examples, settings.shots)
        for number in range(first, first + size)
    ]
    prompts = model.chat.encode_prompts([request(one, settings.style) for one in shots])
    limit = model.chat.max_length
    fits = [i for i, p in enumerate(prompts) if limit is None or len(p.ids) + settings.max_tokens <= limit]
    sampling = SampleSettings(
        settings.temperature, settings.top_p, 0, settings.max_tokens, max_concurrent=settings.max_concurrent
    )
    seeds = response_seeds([first + i for i in fits], 1, settings.seed, 8)  # a request's own, whatever stands beside it
    groups = sample(model, [prompts[i] for i in fits], 1, sampling, seeds=seeds) if fits else []
    texts: list[str | None] = [None] * size
    for index, group in zip(fits, groups, strict=True):
        texts[index] = group.responses[0].text
    return list(zip(shots, texts, strict=True))


def first_line(text: str) -> str:
    """Returns the first line with words, without a list number or bullet before it."""
    line = next((line for line in text.splitlines() if words_of(line)), "")
    head, dot, rest = line.strip().partition(" ")
    marked = bool(dot) and (head in ("-", "*") or (head[:-1].isdigit() and head[-1] in ".)"))
    return " ".join((rest if marked else line).split())


# ------------------------------------------------------------------------------------------------- the filter


class PromptFilter:
    """Finds the reason why a text is no new prompt; "" if it is one. Accepted prompts are registered with `add`."""

    def __init__(self, settings: NewPromptsSettings, given: Sequence[str]):
        self.settings = settings
        self.blocked = {word for text in settings.blocked for word in words_of(text)}
        self.texts: list[str] = []
        self.words: list[tuple[str, ...]] = []
        self.known: set[tuple[str, ...]] = set()
        for text in given:
            self.add(text)

    def add(self, text: str) -> None:
        words = words_of(text)
        if words not in self.known:
            self.texts.append(text)
            self.words.append(words)
            self.known.add(words)

    def __call__(self, text: str) -> tuple[str, float, str]:
        """Returns (reason, ROUGE-L to the nearest prompt, that prompt); without a reason before it."""
        words = words_of(text)
        if len(words) < self.settings.min_words:
            return "too short", 0.0, ""
        if len(words) > self.settings.max_words:
            return "too long", 0.0, ""
        if not self.blocked.isdisjoint(words):
            return "blocked word", 0.0, ""
        if words in self.known:
            return "repeated", 1.0, ""
        likeness, index = most_alike(words, self.words)
        like = self.texts[index] if index >= 0 else ""
        return ("too similar" if likeness >= self.settings.similarity else ""), likeness, like


register(
    Stage(
        "new_prompts",
        run,
        NewPromptsSettings,
        "New prompts that a model writes after the pattern of given ones, without those too like what is there.",
        refers=("model", "prompts"),
    )
)
