"""The probability with which a task was drawn for an exposure, where tasks are not given out in their order."""

from __future__ import annotations

from alembic import op

from tiltyard.feedback.store.migrations.triggers import make_append_only
from tiltyard.feedback.store.tables import metadata

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Makes the table of draws."""
    metadata.create_all(op.get_bind(), tables=[metadata.tables["draws"]])
    make_append_only("draws")
