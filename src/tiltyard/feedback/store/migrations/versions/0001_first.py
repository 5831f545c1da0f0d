"""The first schema, and triggers that refuse to change or delete what was collected.

It makes the tables as `tables.py` has them. The first change of the schema copies them here as they are now, so that a
store of this version can still be brought to the next.
"""

from __future__ import annotations

from alembic import op

from tiltyard.feedback.store.tables import APPEND_ONLY, metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes all tables and the triggers."""
    connection = op.get_bind()
    metadata.create_all(connection)
    if connection.dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION refuse_change() RETURNS trigger AS $$ BEGIN "
            "RAISE EXCEPTION 'this table is append-only'; END $$ LANGUAGE plpgsql"
        )
    for table in APPEND_ONLY:
        for action in ("UPDATE", "DELETE"):
            name = f"no_{action.lower()}_{table}"
            if connection.dialect.name == "postgresql":
                op.execute(
                    f"CREATE TRIGGER {name} BEFORE {action} ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_change()"
                )
            else:
                op.execute(
                    f"CREATE TRIGGER {name} BEFORE {action} ON {table} "
                    "BEGIN SELECT RAISE(ABORT, 'this table is append-only'); END"
                )
