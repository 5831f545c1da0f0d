"""Judgements from a feedback store or from files: judged groups, whatever form they were kept in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tiltyard.data import BadRowRule, BadRows, parsed_rows, read_groups
from tiltyard.data.judged_rows import parse_judged
from tiltyard.errors import ConfigError, DataError
from tiltyard.files import exists, user_path
from tiltyard.types import Group

SQLITE = b"SQLite format 3\0"
DATA_STAGES = ("real", "adjudication")
ALL_STAGES = (*DATA_STAGES, "gold", "attention")


@dataclass(frozen=True)
class Judged:
    """Judged groups of one source or more.

    `models`: names of all that are registered in a store, compared or not. `notes`: what was left out.
    """

    groups: tuple[Group, ...]
    models: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)


def is_store(source: str) -> bool:
    """True for the URL of a database, or an SQLite file."""
    if source.startswith(("sqlite:", "postgresql:", "postgresql+")):
        return True
    path = user_path(source)
    if not exists(path) or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(SQLITE)) == SQLITE


def judged(
    sources: str | Sequence[str],
    *,
    split: str = "",
    bad_rows: BadRowRule = "error",
    stages: Sequence[str] = DATA_STAGES,
) -> Judged:
    """Reads the judgements of feedback stores and files.

    Args:
        sources: URLs of stores, SQLite files, `*.groups.jsonl`, or rows as `parse_judged` and `read_rows` take them.
        split: of a folder or hub data set.
        bad_rows: an `error` lists all rows that cannot be used; `drop` leaves them out and counts them.
        stages: of a store's tasks; the default leaves tests of annotators out.

    Raises:
        ConfigError: no source, or an unknown rule.
        DataError: a source that cannot be read, rows that cannot be used, or a store without a judgement.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    if not names:
        raise ConfigError("there are no judgements", where="source", expected="a store or a file")
    if bad_rows not in ("error", "drop"):
        raise ConfigError("unknown rule for bad rows", where="bad_rows", got=bad_rows, expected="error or drop")
    groups: list[Group] = []
    models: list[str] = []
    notes: list[str] = []
    for name in names:
        if is_store(name):
            found, registered = _of_store(name, stages)
            groups += found
            models += registered
        elif name.endswith(".groups.jsonl"):
            groups += read_groups(user_path(name))
        else:
            bad = BadRows(bad_rows)
            groups += [group for _, group in parsed_rows(name, parse_judged, bad, split=split or None)]
            notes += [f"{name}: {line}" for line in bad.lines()]
    if not groups and all(map(is_store, names)):
        raise DataError(
            "this store has no judgements yet",
            where=", ".join(names),
            got=f"no judgements of {', '.join(stages)} tasks",
            fix=f"let people judge: tiltyard collect people {names[0]} NAME, then tiltyard collect serve {names[0]}",
        )
    return Judged(tuple(groups), tuple(dict.fromkeys(models)), tuple(notes))


def _of_store(name: str, stages: Sequence[str]) -> tuple[list[Group], list[str]]:
    from tiltyard.feedback.store.database import Database
    from tiltyard.feedback.store.export import groups, policies

    file = name.removeprefix("sqlite:///") if name.startswith("sqlite:///") else ""
    if file and not exists(user_path(file)):  # opening it would make an empty store
        raise DataError("there is no such store", where=name, fix="check the path")
    database = Database(name if "://" in name else Path(name))
    try:
        return list(groups(database, stages=stages)), policies(database)
    finally:
        database.close()
