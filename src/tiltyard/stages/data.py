"""Reading a stage's data with its report; files named `*.groups.jsonl` hold records whose ids are kept as they are."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast, get_args

from tiltyard.algorithms.base import Encode
from tiltyard.data import (
    Chat,
    CheckReport,
    Kind,
    check_data,
    load_groups,
    load_prompts,
    parse_row,
    read_groups,
    read_rows,
)
from tiltyard.errors import ConfigError, DataError, nearest
from tiltyard.scoring.scorers import in_tokens_of
from tiltyard.stages.base import StageContext
from tiltyard.types import Group, Prompt


def groups_of(
    context: StageContext, key: str, source: str | list[str], kind: Kind, chat: Chat, settings: Any
) -> list[Group]:
    """The groups of one data setting, encoded; says on the console what was kept, dropped and cut.

    Of several files each has its own report, and the origin of a group begins with the file that it comes from.
    """
    if isinstance(source, list):
        each = [(one, groups_of(context, f"{key} {one}", one, kind, chat, settings)) for one in files_of(key, source)]
        return [replace(g, origin=f"{one} {g.origin}".strip()) for one, groups in each for g in groups]
    path = context.resolve(source, want="")
    max_length = _within(context, "max_length", settings.max_length, chat.max_length)
    if str(path).endswith(".groups.jsonl"):
        limit = getattr(settings, "limit", 0)
        return _sampled_groups(context, key, path, max_length, chat, limit)
    groups, told = load_groups(
        path,
        kind,
        chat,
        max_length=max_length,
        too_long=settings.too_long,
        split=getattr(settings, "split", "") or None,
        limit=getattr(settings, "limit", 0) or None,
    )
    report(context, key, told.lines())
    return groups


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
) -> list[Group]:
    """The groups of a file of records; too long ones are dropped and counted.

    Ids are kept as sampled where this model's tokenizer and template make the same of the texts. Where others made
    them, all are made again: read as they are, they would be other words.
    """
    every = list(islice(read_groups(path), limit or None))
    foreign = _foreign(chat, every)
    every = [in_tokens_of(chat, g) for g in every] if foreign else every
    groups = [g for g in every if len(g.prompt.ids) + max(len(r.ids) for r in g.responses) <= max_length]
    if not groups:
        raise DataError(
            "no group fits" if every else "the file holds no groups",
            where=str(path),
            got=f"{len(every):,} groups",
            expected=f"a prompt and its longest answer of at most {max_length} tokens",
        )
    lost = len(every) - len(groups)
    told = f", {lost:,} dropped (longer than {max_length} tokens)" if lost else ""
    ids = "ids made again from the texts (another tokenizer or template made them)" if foreign else "ids as sampled"
    report(context, key, [f"{len(groups):,} groups, {ids}{told}"])
    return groups


def _foreign(chat: Chat, groups: list[Group]) -> bool:
    """Whether other than this model's tokens, or none, stand in some group (a long prompt may lack its front)."""
    for group in groups:
        given = group.prompt
        if not given.ids or not all(r.ids for r in group.responses):
            return True
        if given.ids and (given.messages or given.text is not None):
            own = chat.encode_prompt(replace(given, ids=())).ids
            if own[-len(given.ids) :] != given.ids:
                return True
        if any(r.finish != "given" and chat.decode(r.ids) != r.text for r in group.responses):
            return True
    return False


def rewritten(
    context: StageContext, key: str, encode: Encode | None, groups: list[Group], chat: Chat, settings: Any
) -> list[Group]:
    """The groups as a method reads them (`Method.encode`); most methods read them as they are."""
    if encode is None:
        return groups
    limit = settings.max_length if chat.max_length is None else min(settings.max_length, chat.max_length)
    made, lines = encode(chat, groups, limit, settings.too_long)
    report(context, key, lines)
    return made


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
    """What `tiltyard check` finds in one file, or in two that should share nothing."""
    if kind not in get_args(Kind):
        raise ConfigError("unknown kind of data", where="--kind", got=kind, fix=nearest(kind, get_args(Kind)))
    read = [[parse_row(row, cast(Kind, kind)) for row in read_rows(path)] for path in (data, held_out) if path]
    return check_data(read[0], read[1] if len(read) > 1 else None)


def report(context: StageContext, key: str, lines: list[str]) -> None:
    for line in lines:
        context.console.print(f"  {key}: {line}", markup=False, highlight=False)


def byte_count(groups: list[Group]) -> int:
    """UTF-8 bytes of the answers: what bits per byte divides by."""
    return sum(len(r.text.encode()) for g in groups for r in g.responses)


def model_folder(context: StageContext, value: str) -> Path:
    return context.resolve(value, want="model")
