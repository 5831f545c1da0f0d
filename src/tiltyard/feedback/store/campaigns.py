"""Campaigns: tasks that were added together under one name, so that they can be counted, exported and closed.

`items.add_tasks` with the name of a campaign that is there already adds nothing: a process that was killed
may do it again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Select, case, func, or_, select, update

from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database


class Count(NamedTuple):
    """The state of a campaign, adjudications of its tasks included.

    `given` of the `wanted` judgements are there, more than a task asks for not counted; `annotators` gave some.
    """

    tasks: int
    wanted: int
    given: int
    annotators: int


def tasks_of(name: str) -> Select[Any]:
    """Selects the ids of a campaign's tasks and of the adjudications of these."""
    own = select(t.campaigns.c.task_id).where(t.campaigns.c.name == name)
    return select(t.tasks.c.id).where(or_(t.tasks.c.id.in_(own), t.tasks.c.parent_id.in_(own)))


def counted(database: Database, name: str) -> Count:
    """Counts the tasks of a campaign and the judgements on them; those of AI judges are none of them."""
    missing = case((t.task_state.c.missing > 0, t.task_state.c.missing), else_=0)
    sizes = (
        select(func.count(), func.sum(t.tasks.c.overlap), func.sum(missing))
        .select_from(t.tasks)
        .join(t.task_state, t.task_state.c.task_id == t.tasks.c.id)
        .where(t.tasks.c.id.in_(tasks_of(name)))
    )
    judged = (
        select(func.count(t.judgements.c.annotator_id.distinct()))
        .join(t.annotators, t.annotators.c.id == t.judgements.c.annotator_id)
        .where(t.judgements.c.task_id.in_(tasks_of(name)), t.annotators.c.role != "judge")
    )
    with database.reading() as connection:
        tasks, wanted, left = connection.execute(sizes).one()
        annotators = int(connection.scalar(judged) or 0)
    return Count(int(tasks), int(wanted or 0), int(wanted or 0) - int(left or 0), annotators)


def close(database: Database, prefix: str, *, but: str = "") -> int:
    """Gives the open tasks of all campaigns whose names begin with `prefix` to no one any more; returns their number.

    What was judged stays; who has one of them open may still judge it.

    Args:
        but: the name of a campaign that stays open.
    """
    own = select(t.campaigns.c.task_id).where(t.campaigns.c.name.startswith(prefix, autoescape=True))
    if but:
        own = own.where(t.campaigns.c.name != but)
    every = select(t.tasks.c.id).where(or_(t.tasks.c.id.in_(own), t.tasks.c.parent_id.in_(own)))
    state = t.task_state
    query = update(state).where(state.c.task_id.in_(every), state.c.missing > 0).values(t.CLOSED)
    with database.writing() as connection:
        return int(connection.execute(query).rowcount)
