"""Replaced images count against a site's quota."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this schema."""
    # Not in a batch: that makes the table anew in SQLite, and dropping the old one would take its images along.
    op.add_column("cases", sa.Column("replaced_bytes", sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    """Back to the one before."""
    op.drop_column("cases", "replaced_bytes")
