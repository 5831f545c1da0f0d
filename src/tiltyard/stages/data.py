"""Reading a stage's data with its report; files named `*.groups.jsonl` hold records whose ids are kept as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiltyard.data import Chat, Kind, load_groups, load_prompts, read_groups
from tiltyard.errors import DataError
from tiltyard.stages.base import StageContext
from tiltyard.types import Group, Prompt


def groups_of(context: StageContext, key: str, source: str, kind: Kind, chat: Chat, settings: Any) -> list[Group]:
    """The groups of one data setting, encoded; says on the console what was kept, dropped and cut."""
    path = context.resolve(source, want="")
    if str(path).endswith(".groups.jsonl"):
        groups = [g for g in read_groups(path) if g.tokens <= settings.max_length]
        if not groups:
            raise DataError("no group fits", where=str(path), expected=f"at most {settings.max_length} tokens")
        report(context, key, [f"{len(groups):,} groups, ids as sampled"])
        return groups
    groups, told = load_groups(
        path,
        kind,
        chat,
        max_length=settings.max_length,
        too_long=settings.too_long,
        split=getattr(settings, "split", "") or None,
        limit=getattr(settings, "limit", 0) or None,
    )
    report(context, key, told.lines())
    return groups


def prompts_of(context: StageContext, source: str, chat: Chat, settings: Any) -> list[Prompt]:
    """The prompts of a stage, encoded."""
    prompts, told = load_prompts(
        context.resolve(source, want=""),
        chat,
        max_prompt=settings.max_prompt,
        too_long=settings.too_long,
        split=getattr(settings, "split", "") or None,
        limit=getattr(settings, "limit", 0) or None,
    )
    report(context, "prompts", told.lines())
    return prompts


def report(context: StageContext, key: str, lines: list[str]) -> None:
    for line in lines:
        context.console.print(f"  {key}: {line}", markup=False, highlight=False)


def byte_count(groups: list[Group]) -> int:
    """UTF-8 bytes of the answers: what bits per byte divides by."""
    return sum(len(r.text.encode()) for g in groups for r in g.responses)


def model_folder(context: StageContext, value: str) -> Path:
    return context.resolve(value, want="model")
