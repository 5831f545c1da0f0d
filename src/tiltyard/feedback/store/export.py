"""Reads a store as groups with preferences: what training, ratings and agreement are computed from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, select

from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.campaigns import tasks_of
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.judgements import WITHDRAWN
from tiltyard.feedback.store.verdicts import agree, preference_of
from tiltyard.types import Group, Message, Preference, Prompt, Response, response_id

BLOCK = 1000  # judgements read at a time


def groups(
    database: Database,
    *,
    stages: Sequence[str] = ("real", "adjudication"),
    kinds: Sequence[str] = (),
    roles: Sequence[str] = (),
    tasks: Collection[int] | None = None,
    campaign: str = "",
) -> Iterator[Group]:
    """Yields a group for each judgement that stands, the oldest first: one opinion of one annotator.

    The preference names the annotator, the time, the version of the guidelines, the prompt and the responses; its
    `meta` holds `task`, `stage`, `chosen_with` (the probability with which its responses were chosen), `drawn_with` and
    `candidates` (of an active draw of the task: its probability, and among how many), `source`, `role` (of an admin, a
    judge or a simulated annotator), `right` (of an item whose verdict is known), `imported` (file and line of a
    judgement that was not given here) and the comment. A pair of which both are bad has a preference without ranks
    (`meta["reason"]`), as has a written text, whose group has the text as its one response (`meta["edited"]`: the
    response that it is an edit of).

    Args:
        stages: of the tasks that count; `gold`, `attention` and `training` are tests of annotators, not data.
        kinds: of tasks; empty: all.
        roles: of annotators (`admin`, `annotator`, `judge`, `simulated`); empty: all.
        tasks: their ids; None: all.
        campaign: of the tasks, and of those that they decide; empty: all.
    """
    after = 0
    wanted = [t.tasks.c.stage.in_(stages)]
    if kinds:
        wanted.append(t.tasks.c.kind.in_(kinds))
    if roles:
        wanted.append(t.annotators.c.role.in_(roles))
    if tasks is not None:
        wanted.append(t.tasks.c.id.in_(tasks))
    if campaign:
        wanted.append(t.tasks.c.id.in_(tasks_of(campaign)))
    while rows := _block(database, after, wanted):
        after = rows[-1].judgement_id
        responses, draws = responses_of(database, rows), _draws_of(database, rows)
        yield from (_group(row, stored, draw) for row, stored, draw in zip(rows, responses, draws, strict=True))


def policies(database: Database) -> list[str]:
    """Returns the names of all policies ever registered, `name` or `name@version`, in the order of their arrival."""
    with database.reading() as connection:
        rows = connection.execute(select(t.policies.c.name, t.policies.c.version).order_by(t.policies.c.id)).all()
    return [f"{row.name}@{row.version}" if row.version else row.name for row in rows]


def _block(database: Database, after: int, wanted: Sequence[ColumnElement[bool]]) -> list[Any]:
    j, newer = t.judgements, t.judgements.alias("newer")
    query = (
        select(
            j.c.id.label("judgement_id"),
            j.c.verdict,
            j.c.comment,
            j.c.created,
            j.c.seconds,
            j.c.exposure_id,
            t.tasks.c.id.label("task_id"),
            t.tasks.c.parent_id,
            t.tasks.c.kind,
            t.tasks.c.stage,
            t.tasks.c.probability,
            t.tasks.c.responses,
            t.tasks.c.source,
            t.prompts.c.id.label("prompt_id"),
            t.prompts.c.messages,
            t.prompts.c.tools,
            t.prompts.c.meta,
            t.tasks.c.expected,
            t.annotators.c.name,
            t.annotators.c.role,
            t.exposures.c.guideline,
            t.exposures.c.shown,
            t.imports.c.origin,
            t.imports.c.meta.label("imported"),
        )
        .join(t.tasks, t.tasks.c.id == j.c.task_id)
        .join(t.prompts, t.prompts.c.id == t.tasks.c.prompt_id)
        .join(t.annotators, t.annotators.c.id == j.c.annotator_id)
        .outerjoin(t.exposures, t.exposures.c.id == j.c.exposure_id)
        .outerjoin(t.imports, t.imports.c.judgement_id == j.c.id)
        .outerjoin(newer, newer.c.supersedes == j.c.id)
        .where(newer.c.id.is_(None), j.c.id > after, *wanted)
        .order_by(j.c.id)
        .limit(BLOCK)
    )
    with database.reading() as connection:
        rows = list(connection.execute(query).all())
    standing = [row for row in rows if row.verdict != WITHDRAWN]
    return standing if standing or not rows else _block(database, rows[-1].judgement_id, wanted)


def responses_of(database: Database, rows: Sequence[Any]) -> list[list[Any]]:
    """Returns the stored responses, with their policies, that each row names in `responses`, in that order."""
    ids = sorted({key for row in rows for key in row.responses})
    query = select(t.responses, t.policies.c.name, t.policies.c.version).join(
        t.policies, t.policies.c.id == t.responses.c.policy_id
    )
    found: dict[int, Any] = {}
    with database.reading() as connection:
        for start in range(0, len(ids), BLOCK):
            part = query.where(t.responses.c.id.in_(ids[start : start + BLOCK]))
            found |= {row.id: row for row in connection.execute(part)}
    return [[found[key] for key in row.responses] for row in rows]


def _draws_of(database: Database, rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns the active draw by which each judgement's task came up, as facts; {} where it was given in order.

    It is the draw of the exposure, or the last one of the task before: a task that someone has begun, an adjudication
    and what was undone come without a draw of their own.
    """
    d, e = t.draws, t.exposures
    tasks = sorted({key for row in rows for key in (row.task_id, row.parent_id) if key is not None})
    query = select(e.c.task_id, d).join(d, d.c.exposure_id == e.c.id).where(e.c.task_id.in_(tasks)).order_by(e.c.id)
    found: dict[int, list[Any]] = {}
    with database.reading() as connection:
        for one in connection.execute(query):
            found.setdefault(one.task_id, []).append(one)
    return [_draw_of(row, found.get(row.parent_id or row.task_id, ())) for row in rows]


def _draw_of(row: Any, draws: Sequence[Any]) -> dict[str, Any]:
    """The last of a task's draws up to the exposure of a judgement; {} for a judge, who has none."""
    known = [one for one in draws if row.exposure_id is not None and one.exposure_id <= row.exposure_id]
    return {"drawn_with": known[-1].probability, "candidates": known[-1].candidates} if known else {}


def _group(row: Any, stored: Sequence[Any], draw: dict[str, Any]) -> Group:
    prompt = prompt_of(row)
    responses = tuple(
        Response(
            text=one.text, meta={**one.meta, "policy": one.name} | ({"version": one.version} if one.version else {})
        )
        for one in stored
    )
    before = None
    if row.kind == "write":
        edited = row.verdict.get("edited")
        before = None if edited is None else {"text": responses[edited].text, **responses[edited].meta}
        responses = (Response(text=row.verdict["text"], meta={"policy": f"annotator:{row.name}"}),)
    given = dict(row.imported or {})
    given |= {} if before is None else {"edited": before}
    own = {key: given.pop(key) for key in ("guideline", "run", "model") if key in given}
    meta = given | ({} if row.origin is None else {"imported": row.origin})
    meta |= {"task": row.task_id, "kind": row.kind, "stage": row.stage, "chosen_with": row.probability}
    meta |= draw
    meta |= {"role": row.role} if row.role != "annotator" else {}
    meta |= {"source": row.source} if row.source else {}
    meta |= {} if row.expected is None else {"right": agree(row.kind, row.verdict, row.expected)}
    meta |= {"comment": row.comment} if row.comment else {}
    meta |= {"seconds": row.seconds} if row.seconds is not None else {}
    meta |= {"shown": list(row.shown)} if row.shown is not None else {}
    preference: Preference = preference_of(
        row.kind,
        row.verdict,
        len(stored),
        annotator=row.name,
        when=datetime.fromtimestamp(row.created / 1000, UTC).isoformat(timespec="milliseconds"),
        prompt=prompt.id,
        responses=tuple(response_id(response) for response in responses),
        meta=meta,
        **({"guideline": "" if row.guideline is None else str(row.guideline)} | own),
    )
    return Group(prompt, responses, preference=preference, origin=row.source)


def prompt_of(row: Any) -> Prompt:
    """Returns the prompt of a row with the columns `prompt_id`, `messages`, `tools` and `meta`."""
    meta = {key: value for key, value in row.meta.items() if key != "id"}
    name = str(row.meta.get("id", row.prompt_id))
    if isinstance(row.messages, dict):
        return Prompt(text=row.messages["text"], id=name, meta=meta)
    messages = tuple(Message.from_dict(one) for one in row.messages)
    return Prompt(messages=messages, id=name, meta=meta, tools=row.tools)
