"""Reading a stage's data with its report, never all of them at once.

Files named `*.groups.jsonl` hold records whose ids are kept as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast, get_args

from tiltyard.data import (
    Chat,
    CheckReport,
    GroupFile,
    Kind,
    check_data,
    load_prompts,
    parse_row,
    read_groups,
    read_rows,
    stream_groups,
)
from tiltyard.errors import ConfigError, DataError, nearest
from tiltyard.methods.base import Encode
from tiltyard.scoring.reward_model import in_tokens_of
from tiltyard.stages.base import StageContext
from tiltyard.types import Group, Prompt


def groups_of(
    context: StageContext, key: str, source: str | list[str], kind: Kind, chat: Chat, settings: Any
) -> GroupFile:
    """The groups of one data setting, encoded, on disk; says on the console what was kept, dropped and cut.

    Of several files each has its own report, and the origin of a group begins with the file that it comes from.
    """
    return write_group_file(context, stream_of(context, key, source, kind, chat, settings))


def write_group_file(context: StageContext, groups: Iterable[Group]) -> GroupFile:
    """Groups laid down beside the runs for as long as the stage lasts: memory holds none of them."""
    return GroupFile.write(groups, context.run_folder.parent / ".cache")


def stream_of(
    context: StageContext, key: str, source: str | list[str], kind: Kind, chat: Chat, settings: Any
) -> Iterator[Group]:
    """`groups_of` one by one; the report comes when the last group has been taken."""
    if isinstance(source, list):
        for one in files_of(key, source):
            for group in stream_of(context, f"{key} {one}", one, kind, chat, settings):
                yield replace(group, origin=f"{one} {group.origin}".strip())
        return
    path = context.resolve(source, want="")
    max_length = _within(context, "max_length", settings.max_length, chat.max_length)
    if str(path).endswith(".groups.jsonl"):
        yield from _sampled_groups(context, key, Path(path), max_length, chat, getattr(settings, "limit", 0))
        return
    stream = stream_groups(
        path,
        kind,
        chat,
        max_length=max_length,
        too_long=settings.too_long,
        split=getattr(settings, "split", "") or None,
        limit=getattr(settings, "limit", 0) or None,
    )
    yield from stream
    report(context, key, stream.report.lines())


def files_of(key: str, source: str | list[str]) -> list[str]:
    """The files that a data setting names.

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
    context: StageContext, key: str, path: Path, max_length: int, chat: Chat, limit: int
) -> Iterator[Group]:
    """The groups of a file of records; too long ones are dropped and counted.

    Ids are kept as sampled where this model's tokenizer and template make the same of the texts. Where others made
    them, all are made again: read as they are, they would be other words.
    """

    def every() -> Iterator[Group]:
        return islice(read_groups(path), limit or None)

    foreign = any(_foreign(chat, group) for group in every())
    rows = kept = 0
    for group in every():
        rows += 1
        own = in_tokens_of(chat, group) if foreign else group
        if len(own.prompt.ids) + max(len(r.ids) for r in own.responses) <= max_length:
            kept += 1
            yield own
    if not kept:
        raise DataError(
            "no group fits" if rows else "the file holds no groups",
            where=str(path),
            got=f"{rows:,} groups",
            expected=f"a prompt and its longest answer of at most {max_length} tokens",
        )
    told = f", {rows - kept:,} dropped (longer than {max_length} tokens)" if rows > kept else ""
    ids = "ids made again from the texts (another tokenizer or template made them)" if foreign else "ids as sampled"
    report(context, key, [f"{kept:,} groups, {ids}{told}"])


def _foreign(chat: Chat, group: Group) -> bool:
    """Whether other than this model's tokens, or none, stand in the group (a long prompt may lack its front)."""
    given = group.prompt
    if not given.ids or not all(r.ids for r in group.responses):
        return True
    if given.messages or given.text is not None:
        own = chat.encode_prompt(replace(given, ids=())).ids
        if own[-len(given.ids) :] != given.ids:
            return True
    return any(r.finish != "given" and chat.decode(r.ids) != r.text for r in group.responses)


def rewritten(
    context: StageContext, key: str, encode: Encode | None, groups: Iterable[Group], chat: Chat, settings: Any
) -> Iterator[Group]:
    """The groups as a method reads them (`Method.encode`); most methods read them as they are."""
    if encode is None:
        yield from groups
        return
    limit = settings.max_length if chat.max_length is None else min(settings.max_length, chat.max_length)
    encoded = encode(chat, groups, limit, settings.too_long)
    yield from encoded
    report(context, key, encoded.report)


def _within(context: StageContext, name: str, wanted: int, limit: int | None) -> int:
    """A length that was set, or the most that the model's context allows; says so where that is less."""
    if limit is None or wanted <= limit:
        return wanted
    report(context, name, [f"{limit} tokens, which is what the model's context leaves (set: {wanted})"])
    return limit


def prompts_of(context: StageContext, source: str, chat: Chat, settings: Any) -> list[Prompt]:
    """The prompts of a stage, encoded."""
    prompts, told = load_prompts(
        context.resolve(source, want=""),
        chat,
        # one token at least must be left for the answer
        max_prompt=_within(context, "max_prompt", settings.max_prompt, chat.max_length and chat.max_length - 1),
        too_long=settings.too_long,
        split=getattr(settings, "split", "") or None,
        limit=getattr(settings, "limit", 0) or None,
    )
    report(context, "prompts", told.lines())
    return prompts


def check_files(data: str, held_out: str = "", kind: str = "comparisons") -> CheckReport:
    """What `tiltyard check` finds in one file, or in two that should share nothing; no file is held in memory."""
    if kind not in get_args(Kind):
        raise ConfigError("unknown kind of data", where="--kind", got=kind, fix=nearest(kind, get_args(Kind)))
    return check_data(_Rows(data, cast(Kind, kind)), _Rows(held_out, cast(Kind, kind)) if held_out else None)


@dataclass(frozen=True)
class _Rows:
    """The rows of a file as groups without ids; read anew each time they are gone through."""

    path: str
    kind: Kind

    def __iter__(self) -> Iterator[Group]:
        return (parse_row(row, self.kind) for row in read_rows(self.path))


def report(context: StageContext, key: str, lines: list[str]) -> None:
    """`StageContext.report` as a function."""
    context.report(key, lines)


def byte_count(groups: Iterable[Group]) -> int:
    """UTF-8 bytes of the answers: what bits per byte divides by."""
    return sum(len(r.text.encode()) for g in groups for r in g.responses)


def model_folder(context: StageContext, value: str) -> Path | str:
    return context.resolve(value, want="model")
