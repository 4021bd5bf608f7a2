"""Patterns: an index of the aliases that are more than a name, so that they are found among any number of names."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_aliases_patterns",
        "aliases",
        ["domain_id"],
        postgresql_where=sa.text(r"translate(pattern, '()[]{}\|^$*', '') <> pattern"),
        sqlite_where=sa.text(r"pattern GLOB '*[][(){}\|^$*]*'"),
    )
