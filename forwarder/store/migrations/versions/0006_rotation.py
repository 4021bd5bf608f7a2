"""Rotation: DKIM keys that wait for their record in the DNS, and keys that signed until others took their place."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TIME = sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql")


def upgrade() -> None:
    op.add_column(
        "dkim_keys",
        sa.Column("is_waiting", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.add_column("dkim_keys", sa.Column("retired_at", _TIME, nullable=True))
