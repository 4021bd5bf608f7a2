"""Failures: indexes of the logs that have one, of an alias and of all, so that few are found among many others."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    failed = sa.text("failed")
    for name, columns in (
        ("ix_logs_failed_alias", ["domain_id", "alias", "id"]),
        ("ix_logs_failed_id", ["id"]),
    ):
        op.create_index(name, "logs", columns, postgresql_where=failed, sqlite_where=failed)
