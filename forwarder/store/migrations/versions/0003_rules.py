"""Rules: the order among regular expressions, and aliases that are disabled as if they were not there."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("aliases", sa.Column("rank", sa.Double(), nullable=True))
    op.add_column(
        "aliases",
        sa.Column("is_skipped", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
