"""Triggers of the database that refuse to change or delete what was collected."""

from __future__ import annotations

from alembic import op


def make_append_only(table: str) -> None:
    """Makes the triggers of a table. On PostgreSQL the function `refuse_change` must exist."""
    for action in ("UPDATE", "DELETE"):
        name = f"no_{action.lower()}_{table}"
        if op.get_bind().dialect.name == "postgresql":
            op.execute(
                f"CREATE TRIGGER {name} BEFORE {action} ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_change()"
            )
        else:
            op.execute(
                f"CREATE TRIGGER {name} BEFORE {action} ON {table} "
                "BEGIN SELECT RAISE(ABORT, 'this table is append-only'); END"
            )
