"""Loads a source as encoded groups, with a report of the kept, dropped and truncated rows."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

from tiltyard.data.bad_rows import BadRowRule, BadRows, parsed_rows
from tiltyard.data.chat import Chat
from tiltyard.data.facts import facts_of, same_answers
from tiltyard.data.formats import Kind
from tiltyard.data.limit import Limit
from tiltyard.data.segments import AS_WRITTEN, HISTORY_REWRITTEN, LAST_TURN_ONLY
from tiltyard.errors import ConfigError, DataError
from tiltyard.numerals import plural
from tiltyard.types import Group, Prompt, Response

TooLong = Literal["drop", "truncate"]
Report = TypeVar("Report")
Encoded = TypeVar("Encoded")

_CHUNK = 2048  # rows encoded in one go: large enough for the tokenizer's threads, small enough for memory
_EXAMPLES = 5
_LEAST = 4
PROMPT_TOO_LONG = "prompt longer than its limit"
ROW_TOO_LONG = "prompt and answer longer than max_length"
PIECES = "documents cut into pieces"
PROMPT_CUT = "prompts cut at the front"
ANSWER_CUT = "answers cut at the end"
NOTES = {  # keys of Response.meta that are counted
    LAST_TURN_ONLY: "only the last answer trained (the chat template rewrites earlier turns)",
    HISTORY_REWRITTEN: "earlier turns shown with other words (the chat template rewrites them)",
    AS_WRITTEN: "answers trained word for word (the chat template would change them)",
}


@dataclass(frozen=True)
class DataReport:
    """Counts of the rows of a source by their outcome.

    `rows` were read, `kept` of them are among the `groups` made, which hold `tokens` (each prompt counted once).
    `dropped` and `truncated` count by reason; `notes` count other facts; `examples` are the `file:line`
    of the first dropped rows, `drawn` a sentence on a sample of the rows.
    """

    rows: int
    kept: int
    groups: int
    tokens: int
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    drawn: str = ""

    def lines(self) -> list[str]:
        """Formats the report for people, one fact a line."""
        made = "" if self.groups == self.kept else f" as {plural(self.groups, 'group')}"
        lines = [f"{self.kept:,} of {plural(self.rows, 'row')} kept{made}, {plural(self.tokens, 'token')}"]
        lines += [self.drawn] * bool(self.drawn)
        lines += [f"dropped {count:,}: {reason}" for reason, count in self.dropped.items()]
        if self.examples:
            lines.append(f"  such as {', '.join(self.examples)}")
        lines += [f"cut {count:,}: {reason}" for reason, count in self.truncated.items()]
        lines += [f"note {count:,}: {reason}" for reason, count in self.notes.items()]
        return lines


class _Counts:
    """Running counts while loading."""

    def __init__(self) -> None:
        self.rows = self.kept = self.groups = self.tokens = 0
        self.dropped: Counter[str] = Counter()
        self.truncated: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.examples: list[str] = []
        self.drawn = ""

    def drop(self, reason: str, where: str) -> None:
        self.dropped[reason] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(where)

    def add(self, bad: BadRows) -> None:
        self.rows, self.drawn = bad.rows, bad.drawn
        for reason, places in bad.places.items():
            self.dropped[reason] += len(places)
            self.examples += places[: max(0, _EXAMPLES - len(self.examples))]

    def report(self) -> DataReport:
        return DataReport(
            self.rows,
            self.kept,
            self.groups,
            self.tokens,
            dict(self.dropped),
            dict(self.truncated),
            dict(self.notes),
            tuple(self.examples),
            self.drawn,
        )


class GroupStream(Generic[Report]):
    """Groups one by one, and a report on all of them: `report` is set once the last group has been taken."""

    report: Report

    def __init__(self, stream: Generator[Group, None, Report]):
        self._stream = stream

    def __iter__(self) -> Iterator[Group]:
        self.report = yield from self._stream


def load_groups(
    source: str | Path,
    kind: Kind,
    chat: Chat,
    *,
    max_length: int | None = None,
    max_prompt: int | None = None,
    too_long: TooLong = "drop",
    split: str | None = None,
    limit: Limit = None,
    bad_rows: BadRowRule = "error",
) -> tuple[list[Group], DataReport]:
    """Reads, parses and encodes a source.

    Args:
        max_length: tokens of the prompt and its longest answer together; `chat.max_length` if None.
        max_prompt: tokens of the prompt alone. If None, a prompt that is cut keeps what its longest answer leaves of
            `max_length`, and at least half.
        too_long: `drop` the row, or `truncate`: prompts keep their last tokens, answers their first, and a cut answer
            has `finish="length"` and no end token. Documents (kind `text`) are always cut into consecutive pieces.
        split, limit: as for `read_rows`; `limit` counts rows.
        bad_rows: of rows that cannot be used an `error` lists all, or `drop` leaves them out and counts them.

    Raises:
        DataError: bad rows (after all rows were read), or no row that is kept.
    """
    stream = stream_groups(
        source,
        kind,
        chat,
        max_length=max_length,
        max_prompt=max_prompt,
        too_long=too_long,
        split=split,
        limit=limit,
        bad_rows=bad_rows,
    )
    return list(stream), stream.report


def stream_groups(
    source: str | Path,
    kind: Kind,
    chat: Chat,
    *,
    max_length: int | None = None,
    max_prompt: int | None = None,
    too_long: TooLong = "drop",
    split: str | None = None,
    limit: Limit = None,
    bad_rows: BadRowRule = "error",
) -> GroupStream[DataReport]:
    """Streams the groups of `load_groups` one by one, for sources larger than memory; `report` is set at the end."""
    max_length = chat.max_length if max_length is None else max_length
    _check_limits(max_length, max_prompt, too_long)

    def stream() -> Generator[Group, None, DataReport]:
        counts, bad = _Counts(), BadRows(bad_rows)
        for chunk in _chunks(source, kind, split, limit, counts, bad):
            if bad.refused:
                continue  # nothing of this source will be used: what follows is read for its errors
            for group in _encoded(chunk, kind, chat, max_length, max_prompt, too_long, counts, bad):
                counts.groups += 1
                counts.tokens += group.tokens
                yield group
        bad.settle(str(source))  # those that could not be encoded
        counts.add(bad)
        return _report(counts, source, max_length, max_prompt)

    return GroupStream(stream())


def _encoded(
    chunk: list[Group],
    kind: Kind,
    chat: Chat,
    max_length: int | None,
    max_prompt: int | None,
    too_long: TooLong,
    counts: _Counts,
    bad: BadRows,
) -> Iterator[Group]:
    if kind == "text":
        for pieces in _each(lambda some: chat.encode_documents(some, max_length), chunk, bad):
            counts.kept += 1
            counts.truncated[PIECES] += len(pieces) > 1
            yield from pieces
        return
    for group in _each(chat.encode_groups, chunk, bad):
        fitted = _fit(group, max_length, max_prompt, too_long, counts)
        if fitted is not None:
            counts.kept += 1
            for key, note in NOTES.items():
                counts.notes[note] += any(key in r.meta for r in fitted.responses)
            same, cut = same_answers(group), same_answers(fitted)
            counts.notes[f"{cut} after the cut" if cut != same else same] += bool(cut)
            yield fitted


def load_prompts(
    source: str | Path,
    chat: Chat,
    *,
    max_prompt: int | None = None,
    too_long: TooLong = "drop",
    split: str | None = None,
    limit: Limit = None,
    bad_rows: BadRowRule = "error",
) -> tuple[list[Prompt], DataReport]:
    """Reads, parses and encodes prompts, as `load_groups` does. `max_prompt` is in tokens, `chat.max_length` if None.

    `max_prompt` does not include the tokens of a response: the caller adds those.
    """
    # without a response, the limit of prompt and response together is that of the prompt
    groups, report = load_groups(
        source,
        "prompts",
        chat,
        max_length=max_prompt,
        too_long=too_long,
        split=split,
        limit=limit,
        bad_rows=bad_rows,
    )
    return [g.prompt for g in groups], report


def _check_limits(max_length: int | None, max_prompt: int | None, too_long: str) -> None:
    for name, value in (("max_length", max_length), ("max_prompt", max_prompt)):
        if value is not None and value < _LEAST:
            raise ConfigError(f"{name} is too small", got=value, expected=f"tokens, at least {_LEAST}", fix="raise it")
    if max_length is not None and max_prompt is not None and max_prompt >= max_length:
        raise ConfigError(
            "max_prompt leaves no tokens for an answer",
            got=f"max_prompt={max_prompt}, max_length={max_length}",
            expected="max_prompt below max_length, which counts prompt and answer",
            fix="lower max_prompt or raise max_length",
        )
    if too_long not in ("drop", "truncate"):
        raise ConfigError("unknown rule for long rows", got=too_long, expected="drop or truncate", fix="set too_long")


def _chunks(
    source: str | Path, kind: Kind, split: str | None, limit: Limit, counts: _Counts, bad: BadRows
) -> Iterator[list[Group]]:
    def parsed() -> Iterator[Group]:
        for row, group in parsed_rows(source, kind, bad, split=split, limit=limit):
            counts.notes.update(facts_of(row, group))
            yield group

    groups = parsed()
    while chunk := list(itertools.islice(groups, _CHUNK)):
        yield chunk


def _each(
    encode: Callable[[Sequence[Group]], Sequence[Encoded]], chunk: list[Group], bad: BadRows
) -> Sequence[Encoded]:
    """Encodes groups in one go; if the chat template rejects some, one by one, and those go to `bad`."""
    try:
        return encode(chunk)
    except DataError:
        encoded: list[Encoded] = []
        for group in chunk:
            try:
                encoded += encode([group])
            except DataError as error:
                bad.add(error)
        return encoded


def _fit(
    group: Group, max_length: int | None, max_prompt: int | None, too_long: TooLong, counts: _Counts
) -> Group | None:
    """Cuts the group to the limits; None if it is dropped."""
    prompt = group.prompt
    max_tokens = _prompt_limit(group, max_length, max_prompt, too_long)
    if max_tokens is not None and len(prompt.ids) > max_tokens:
        if too_long == "drop":
            counts.drop(PROMPT_TOO_LONG, group.origin)
            return None
        counts.truncated[PROMPT_CUT] += 1
        prompt = replace(prompt, ids=prompt.ids[-max_tokens:])
    max_tokens = None if max_length is None else max_length - len(prompt.ids)
    if max_tokens is None or all(len(r.ids) <= max_tokens for r in group.responses):
        return replace(group, prompt=prompt)
    if too_long == "drop":
        counts.drop(ROW_TOO_LONG, group.origin)
        return None
    counts.truncated[ANSWER_CUT] += sum(len(r.ids) > max_tokens for r in group.responses)
    return replace(group, prompt=prompt, responses=tuple(_cut(r, max_tokens) for r in group.responses))


def _prompt_limit(group: Group, max_length: int | None, max_prompt: int | None, too_long: TooLong) -> int | None:
    """Returns how many tokens the prompt may have; None is no limit."""
    if max_prompt is not None or max_length is None:
        return max_prompt
    if not group.responses:
        return max_length
    if too_long == "drop":
        return max_length - 1
    return max(max_length // 2, max_length - max(len(r.ids) for r in group.responses))


def _cut(response: Response, max_tokens: int) -> Response:
    if len(response.ids) <= max_tokens:
        return response
    spans = response.loss_spans
    if spans is not None:
        spans = tuple((start, min(stop, max_tokens)) for start, stop in spans if start < max_tokens)
    return replace(response, ids=response.ids[:max_tokens], loss_spans=spans, finish="length")


def _report(counts: _Counts, source: str | Path, max_length: int | None, max_prompt: int | None) -> DataReport:
    for counter in (counts.truncated, counts.notes):
        for reason in [reason for reason, count in counter.items() if not count]:
            del counter[reason]
    if not counts.kept:
        why = "; ".join(f"{count} {reason}" for reason, count in counts.dropped.items())
        raise DataError(
            "no row was kept",
            where=str(source),
            got=f"{counts.rows} rows, all dropped: {why}",
            expected=f"rows within max_length={max_length}, max_prompt={max_prompt}",
            fix='raise the limits, or cut long rows with too_long="truncate"',
        )
    return counts.report()
