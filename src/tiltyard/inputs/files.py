"""Reads the data of a stage as a stream, with a report of what was kept, dropped and cut.

Files named `*.groups.jsonl` hold records whose ids are kept as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol, cast, get_args

from tiltyard.data import (
    BadRowRule,
    BadRows,
    Chat,
    CheckReport,
    GroupFile,
    GroupStream,
    Kind,
    Limit,
    LimitBy,
    TooLong,
    check_data,
    limit_of,
    limited,
    load_prompts,
    parsed_rows,
    read_groups,
    stream_groups,
)
from tiltyard.data.facts import facts_of, same_answers
from tiltyard.errors import ConfigError, DataError, nearest
from tiltyard.inputs.workspace import Workspace, cache_folder
from tiltyard.scoring.reward_model import in_tokens_of
from tiltyard.stats.judged import BOTH_BAD
from tiltyard.types import Group, Prompt

# (chat, groups, max_length, too_long) -> the groups as a method reads them, then lines about what was left out
Encode = Callable[[Chat, Iterable[Group], int, TooLong], GroupStream[list[str]]]


class Limits(Protocol):
    """Limits on the number and length of rows of a data set; settings have these attributes."""

    @property
    def split(self) -> str: ...
    @property
    def limit(self) -> int: ...
    @property
    def limit_by(self) -> LimitBy: ...
    @property
    def too_long(self) -> TooLong: ...
    @property
    def bad_rows(self) -> BadRowRule: ...


class RowLimits(Limits, Protocol):
    """Of rows with responses."""

    @property
    def max_length(self) -> int: ...


class PromptLimits(Limits, Protocol):
    """Of prompts."""

    @property
    def max_prompt(self) -> int: ...


class Rows(NamedTuple):
    """`RowLimits` of a data set that has no settings of its own."""

    max_length: int
    too_long: TooLong = "drop"
    split: str = ""
    limit: int = 0
    bad_rows: BadRowRule = "error"
    limit_by: LimitBy = "first"


def groups_of(
    work: Workspace, key: str, source: str | list[str], kind: Kind, chat: Chat, limits: RowLimits, seed: int = 0
) -> GroupFile:
    """Encodes the groups of one data setting into a file; reports what was kept, dropped and cut.

    Of several files each has its own report, and the origin of a group begins with the file that it comes from.

    Args:
        seed: of the rows that `limit_by: sample` draws.
    """
    return write_group_file(work, stream_of(work, key, source, kind, chat, limits, seed))


def write_group_file(work: Workspace, groups: Iterable[Group]) -> GroupFile:
    """Writes groups to a temporary file beside the runs; none of them is held in memory."""
    return GroupFile.write(groups, cache_folder(work))


def stream_of(
    work: Workspace, key: str, source: str | list[str], kind: Kind, chat: Chat, limits: RowLimits, seed: int = 0
) -> Iterator[Group]:
    """Streams the groups of one data setting; reports after the last one."""
    if isinstance(source, list):
        for one in files_of(key, source):
            for group in stream_of(work, f"{key} {one}", one, kind, chat, limits, seed):
                yield replace(group, origin=f"{one} {group.origin}".strip())
        return
    path = work.resolve(source, want="")
    limit = limit_of(limits.limit, limits.limit_by, seed)
    max_length = _within(work, "max_length", limits.max_length, chat.max_length)
    if str(path).endswith(".groups.jsonl"):
        yield from _sampled_groups(work, key, Path(path), max_length, chat, limit)
        return
    stream = stream_groups(
        path,
        kind,
        chat,
        max_length=max_length,
        too_long=limits.too_long,
        split=limits.split or None,
        limit=limit,
        bad_rows=limits.bad_rows,
    )
    yield from stream
    work.report(key, stream.report.lines())


def files_of(key: str, source: str | list[str]) -> list[str]:
    """Returns the files that a data setting names.

    Raises:
        ConfigError: none, or one of them twice.
    """
    files = source if isinstance(source, list) else [source]
    if not files or len(set(files)) < len(files):
        raise ConfigError(
            "a list of files names each once", where=key, got=files, expected="one file or more, all different"
        )
    return files


def _sampled_groups(
    work: Workspace, key: str, path: Path, max_length: int, chat: Chat, limit: Limit
) -> Iterator[Group]:
    """Streams the groups of a `*.groups.jsonl`; too long ones, and pairs that a person found both bad, are dropped
    and counted.

    Ids are kept as sampled where this model's tokenizer and template give the same ids for the texts; otherwise all
    texts are encoded again.
    """

    drawn = ""

    def told(sentence: str) -> None:
        nonlocal drawn
        drawn = sentence

    def every() -> Iterator[Group]:
        return limited(lambda: read_groups(path), limit, told)

    foreign = any(_foreign(chat, group) for group in every())
    rows = kept = neither = 0
    same: Counter[str] = Counter()
    for group in every():
        rows += 1
        if group.preference is not None and group.preference.meta.get("reason") == BOTH_BAD:
            neither += 1
            continue
        encoded = in_tokens_of(chat, group) if foreign else group
        if len(encoded.prompt.ids) + max(len(r.ids) for r in encoded.responses) <= max_length:
            kept += 1
            same.update(filter(None, [same_answers(encoded)]))
            yield encoded
    if not kept:
        raise DataError(
            "no group fits" if rows else "the file holds no groups",
            where=str(path),
            got=f"{rows:,} groups",
            expected=f"a prompt and its longest response of at most {max_length} tokens",
        )
    long = rows - kept - neither
    dropped = f", {long:,} dropped (longer than {max_length} tokens)" if long else ""
    dropped += f", {neither:,} left out (both bad: neither is preferred)" if neither else ""
    ids = "ids encoded again from the texts (another tokenizer or template made them)" if foreign else "ids as sampled"
    notes = [f"note {count:,}: {reason}" for reason, count in same.items()]
    work.report(key, [f"{kept:,} groups, {ids}{dropped}", *filter(None, [drawn]), *notes])


def _foreign(chat: Chat, group: Group) -> bool:
    """Returns whether the group lacks token ids, or has another model's (a long prompt may be cut at the front)."""
    given = group.prompt
    if not given.ids or not all(r.ids for r in group.responses):
        return True
    if given.messages or given.text is not None:
        own = chat.encode_prompt(replace(given, ids=())).ids
        if own[-len(given.ids) :] != given.ids:
            return True
    return any(r.finish != "given" and chat.decode(r.ids) != r.text for r in group.responses)


def rewritten(
    work: Workspace, key: str, encode: Encode | None, groups: Iterable[Group], chat: Chat, limits: RowLimits
) -> Iterator[Group]:
    """Streams the groups in the form that a method takes (`Method.encode`); most methods take them as they are."""
    if encode is None:
        yield from groups
        return
    limit = limits.max_length if chat.max_length is None else min(limits.max_length, chat.max_length)
    encoded = encode(chat, groups, limit, limits.too_long)
    yield from encoded
    work.report(key, encoded.report)


def _within(work: Workspace, name: str, wanted: int, limit: int | None) -> int:
    """Returns the length that was set, or the most that the model's context allows; reports if that is less."""
    if limit is None or wanted <= limit:
        return wanted
    work.report(name, [f"{limit} tokens, which is what the model's context leaves (set: {wanted})"])
    return limit


def prompts_of(work: Workspace, source: str, chat: Chat, limits: PromptLimits, seed: int) -> list[Prompt]:
    """Loads the prompts of a stage, encoded; `seed` is of those that `limit_by: sample` draws."""
    prompts, loaded = load_prompts(
        work.resolve(source, want=""),
        chat,
        # at least one token must be left for the response
        max_prompt=_within(work, "max_prompt", limits.max_prompt, chat.max_length and chat.max_length - 1),
        too_long=limits.too_long,
        split=limits.split or None,
        limit=limit_of(limits.limit, limits.limit_by, seed),
        bad_rows=limits.bad_rows,
    )
    work.report("prompts", loaded.lines())
    return prompts


def check_files(data: str, held_out: str = "", kind: str = "comparisons", split: str = "") -> CheckReport:
    """Checks one file, or two that should share nothing; no file is held in memory. `split` is that of `data`.

    Rows that cannot be used are in the report.

    Raises:
        DataError: a file of which no row can be used.
    """
    if kind not in get_args(Kind):
        raise ConfigError("unknown kind of data", where="--kind", got=kind, fix=nearest(kind, get_args(Kind)))
    rows = _Rows(data, cast(Kind, kind), split)
    held = _Rows(held_out, cast(Kind, kind)) if held_out else None
    report = check_data(rows, held)
    every = [rows] if held is None else [rows, held]
    reasons = dict.fromkeys(reason for one in every for reason in one.bad.places)
    bad = {reason: tuple(place for one in every for place in one.bad.places.get(reason, ())) for reason in reasons}
    breaks = tuple(str(one.breaks_off) for one in every if one.breaks_off)
    count = sum(one.bad.rows for one in every)
    return replace(report, facts=dict(rows.facts), rows=count, bad=bad, breaks_off=breaks)


class _Rows:
    """The rows of a file as groups without ids, read again at each iteration; a file of groups as it is.

    Attributes:
        facts: what the first pass found in rows beyond their format's own fields.
        bad: rows of the first pass that cannot be used.
        breaks_off: the error of the file at which the first pass ended.
    """

    def __init__(self, path: str, kind: Kind, split: str = ""):
        self.path, self.kind, self.split = path, kind, split
        self.facts: Counter[str] = Counter()
        self.bad = BadRows("drop")
        self.breaks_off: DataError | None = None

    def __iter__(self) -> Iterator[Group]:
        if self.path.endswith(".groups.jsonl"):
            yield from read_groups(self.path)
            return
        again = bool(self.bad.rows)
        bad, facts = (BadRows("drop"), Counter[str]()) if again else (self.bad, self.facts)
        good = 0
        try:
            for row, group in parsed_rows(self.path, self.kind, bad, split=self.split or None):
                good += 1
                facts.update(facts_of(row, group))
                yield group
        except DataError as error:
            if not good:
                raise
            self.breaks_off = error


def byte_count(groups: Iterable[Group]) -> int:
    """Counts the UTF-8 bytes of the responses, the denominator of bits per byte."""
    return sum(len(r.text.encode()) for g in groups for r in g.responses)
