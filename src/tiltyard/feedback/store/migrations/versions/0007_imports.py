"""The origin of judgements that were not given here."""

from __future__ import annotations

from alembic import op

from tiltyard.feedback.store.migrations.triggers import make_append_only
from tiltyard.feedback.store.tables import metadata

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Makes the table of imported judgements."""
    metadata.create_all(op.get_bind(), tables=[metadata.tables["imports"]])
    make_append_only("imports")
