"""The exposures that have neither ended nor run out, in a table of their own."""

from __future__ import annotations

from alembic import op
from sqlalchemy import insert, select

from tiltyard.feedback.store.tables import exposure_ends, exposures, leases, metadata

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Makes the table of leases, from the log of what was shown."""
    connection = op.get_bind()
    metadata.create_all(connection, tables=[leases])
    e, ended = exposures, select(exposure_ends.c.exposure_id)
    lasting = select(e.c.id, e.c.task_id, e.c.annotator_id, e.c.expires).where(e.c.id.not_in(ended))
    connection.execute(insert(leases).from_select(["exposure_id", "task_id", "annotator_id", "expires"], lasting))
