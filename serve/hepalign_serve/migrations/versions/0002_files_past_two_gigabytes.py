"""Files past two gigabytes, which PostgreSQL's integer does not hold."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this schema."""
    _change(sa.Integer(), sa.BigInteger())


def downgrade() -> None:
    """Back to the one before."""
    _change(sa.BigInteger(), sa.Integer())


def _change(before: sa.types.TypeEngine[int], after: sa.types.TypeEngine[int]) -> None:
    for table in ("images", "artifacts"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.alter_column("bytes_stored", existing_type=before, type_=after, existing_nullable=False)
