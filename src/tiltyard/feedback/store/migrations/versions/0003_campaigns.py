"""The campaign under which a task was added, and indices of assignment: the tasks that an annotator has had."""

from __future__ import annotations

from alembic import op

from tiltyard.feedback.store.migrations.triggers import make_append_only
from tiltyard.feedback.store.tables import metadata

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Makes the table of campaigns, and two indices, which a store that 0001 has just made has already."""
    metadata.create_all(op.get_bind(), tables=[metadata.tables["campaigns"]])
    make_append_only("campaigns")
    for table in ("judgements", "exposures"):
        op.create_index(f"ix_{table}_task_annotator", table, ["task_id", "annotator_id"], if_not_exists=True)
