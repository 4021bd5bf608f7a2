"""Confirmations: which addresses agreed to get forwarded mail."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TIME = sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "confirmations",
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("token_digest", sa.String(length=64), nullable=True),
        sa.Column("requested_at", _TIME, nullable=False),
        sa.Column("confirmed_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_confirmations")),
        sa.UniqueConstraint("token_digest", name=op.f("uq_confirmations_token_digest")),
    )
