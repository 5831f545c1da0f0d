"""Counts of a store: judgements in time, by source and by version of the guidelines, flags, skips, policies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select

from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.judgements import WITHDRAWN

HOUR = 3_600_000  # milliseconds


@dataclass(frozen=True)
class Coverage:
    """Tasks of one kind, stage and source: how many there are, and how many of the wanted judgements are there."""

    kind: str
    stage: str
    source: str
    tasks: int
    wanted: int
    given: int


@dataclass(frozen=True)
class Version:
    """A version of the guidelines: when it came, how many accepted it, and the judgements under it.

    `column`: the index in `Overview.by_time` of the time in which it came; None: before the first or after the last.
    """

    version: int
    when: str
    accepted: int
    judged: int
    column: int | None


@dataclass(frozen=True)
class Overview:
    """Counts of a store. `by_time`: (hour or day, judgements) in order, with the empty ones between."""

    coverage: tuple[Coverage, ...]
    by_time: tuple[tuple[str, int], ...]
    versions: tuple[Version, ...]
    flags: tuple[tuple[str, str, str], ...]  # (prompt, annotator, reason)
    policies: tuple[tuple[str, int], ...]  # (policy, responses)
    skipped: Mapping[str, int]  # tasks that each annotator gave back


def overview(database: Database) -> Overview:
    """Counts what a store holds."""
    with database.reading() as connection:
        judged = [row for row in connection.execute(_standing()).all() if row.verdict != WITHDRAWN]
        tasks = connection.execute(
            select(t.tasks.c.id, t.tasks.c.kind, t.tasks.c.stage, t.tasks.c.source, t.tasks.c.overlap)
        ).all()
        versions = connection.execute(select(t.guidelines.c.version, t.guidelines.c.created)).all()
        accepted = Counter(connection.scalars(select(t.acceptances.c.guideline)))
        flags = connection.execute(
            select(t.flags.c.prompt_id, t.annotators.c.name, t.flags.c.reason)
            .join(t.annotators, t.annotators.c.id == t.flags.c.annotator_id)
            .order_by(t.flags.c.id.desc())
            .limit(50)
        ).all()
        policies = connection.execute(
            select(t.policies.c.name, t.policies.c.version, func.count(t.responses.c.id))
            .outerjoin(t.responses, t.responses.c.policy_id == t.policies.c.id)
            .group_by(t.policies.c.id, t.policies.c.name, t.policies.c.version)
            .order_by(t.policies.c.id)
            .limit(200)
        ).all()
        skipped = Counter(
            connection.scalars(
                select(t.annotators.c.name)
                .join(t.exposures, t.exposures.c.annotator_id == t.annotators.c.id)
                .join(t.exposure_ends, t.exposure_ends.c.exposure_id == t.exposures.c.id)
                .where(t.exposure_ends.c.reason == "skipped")
            )
        )
    under = Counter(row.guideline for row in judged)
    names, counts, pattern = _by_time([row.created for row in judged])
    columns = {name: k for k, name in enumerate(names)}
    return Overview(
        _coverage(tasks, Counter(row.task_id for row in judged)),
        tuple(zip(names, counts, strict=True)),
        tuple(
            Version(
                row.version,
                _day(row.created),
                accepted[row.version],
                under[row.version],
                columns.get(_moment(row.created).strftime(pattern)),
            )
            for row in versions
        ),
        tuple((row.prompt_id, row.name, row.reason) for row in flags),
        tuple((" ".join(filter(None, (name, version))), count) for name, version, count in policies),
        dict(skipped),
    )


def _standing() -> Any:
    j, newer = t.judgements, t.judgements.alias("newer")
    return (
        select(j.c.task_id, j.c.verdict, j.c.created, t.exposures.c.guideline)
        .outerjoin(newer, newer.c.supersedes == j.c.id)
        .outerjoin(t.exposures, t.exposures.c.id == j.c.exposure_id)
        .where(newer.c.id.is_(None))
    )


def _coverage(tasks: Sequence[Any], judged: Counter[int]) -> tuple[Coverage, ...]:
    found: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in tasks:
        counts = found[row.kind, row.stage, row.source]
        counts[0] += 1
        counts[1] += row.overlap
        counts[2] += min(judged[row.id], row.overlap) if row.stage in ("real", "adjudication") else judged[row.id]
    return tuple(Coverage(*key, *counts) for key, counts in sorted(found.items()))


def _by_time(moments: Sequence[int]) -> tuple[list[str], list[int], str]:
    """Names and counts by the hour where all lie within two days, else by the day (the last 60), and their pattern."""
    if not moments:
        return [], [], ""
    first, last = min(moments), max(moments)
    hourly = last - first < 48 * HOUR
    pattern, step = ("%m-%d %H:00", timedelta(hours=1)) if hourly else ("%Y-%m-%d", timedelta(days=1))
    counts = Counter(_moment(one).strftime(pattern) for one in moments)
    at, end = _moment(first), _moment(last)
    names = []
    while at.strftime(pattern) != end.strftime(pattern) and at < end + step:
        names.append(at.strftime(pattern))
        at += step
    names.append(end.strftime(pattern))
    names = names[-60:]
    return names, [counts[name] for name in names], pattern


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _day(milliseconds: int) -> str:
    return _moment(milliseconds).strftime("%Y-%m-%d %H:%M")
