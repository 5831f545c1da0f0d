"""The first schema, and triggers that refuse to change or delete what was collected.

It makes its tables as `tables.py` has them. A later version that changes one of them copies the old definition here,
so that a store of this version can still be brought to the next.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tiltyard.feedback.store.migrations.triggers import make_append_only
from tiltyard.feedback.store.tables import metadata

revision = "0001"
down_revision = None

APPEND_ONLY = (
    "prompts",
    "policies",
    "responses",
    "guidelines",
    "tasks",
    "exposures",
    "exposure_ends",
    "judgements",
    "flags",
)
CHANGING = ("annotators", "sessions")


def upgrade() -> None:
    """Makes all tables and the triggers."""
    connection = op.get_bind()
    metadata.create_all(connection, tables=[metadata.tables[name] for name in (*APPEND_ONLY, *CHANGING)])
    op.create_table(  # as it was before 0005
        "task_state",
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("missing", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", name="pk_task_state"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_task_state_task_id_tasks"),
    )
    op.create_index("ix_task_state_missing", "task_state", ["missing"])
    if connection.dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION refuse_change() RETURNS trigger AS $$ BEGIN "
            "RAISE EXCEPTION 'this table is append-only'; END $$ LANGUAGE plpgsql"
        )
    for table in APPEND_ONLY:
        make_append_only(table)
