"""The versions of the guidelines that each annotator has accepted."""

from __future__ import annotations

from alembic import op

from tiltyard.feedback.store.migrations.triggers import make_append_only
from tiltyard.feedback.store.tables import metadata

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the table of acceptances."""
    metadata.create_all(op.get_bind(), tables=[metadata.tables["acceptances"]])
    make_append_only("acceptances")
