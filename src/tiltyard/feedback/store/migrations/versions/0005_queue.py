"""The queue of open tasks: its order beside the count of missing judgements, and indices that find the next task."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

COLUMNS = (
    ("stage", sa.String(20), ""),
    ("begun", sa.Integer(), "0"),
    ("place", sa.Float(), "0"),
)


def upgrade() -> None:
    """Adds stage, place and how far a task is begun to `task_state`, fills them in, and makes the indices."""
    for name, kind, default in COLUMNS:
        op.add_column("task_state", sa.Column(name, kind, nullable=False, server_default=default))
    state = sa.table("task_state", *(sa.column(name) for name in ("task_id", "missing", "stage", "begun", "place")))
    tasks = sa.table("tasks", *(sa.column(name) for name in ("id", "stage", "overlap", "place")))

    def own(column: Any) -> Any:
        return sa.select(column).where(tasks.c.id == state.c.task_id).scalar_subquery()

    begun = state.c.missing - own(tasks.c.overlap)
    op.execute(sa.update(state).values(stage=own(tasks.c.stage), place=own(tasks.c.place), begun=begun))
    columns = ["stage", "begun", "place", "task_id"]
    where = sa.text("missing > 0")
    op.create_index("ix_task_state_queue", "task_state", columns, sqlite_where=where, postgresql_where=where)
    op.create_index("ix_tasks_parent_id", "tasks", ["parent_id"], if_not_exists=True)  # 0001 has made it in a new store
