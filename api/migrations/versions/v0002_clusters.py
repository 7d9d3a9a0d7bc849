"""What a cluster of several machines needs: this installation's name, and who speaks for an attempt."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    installation = op.create_table(
        "installation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=20), nullable=False),
        sa.Column("place", sa.String(length=80), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.bulk_insert(installation, [{"id": 1, "name": f"i{secrets.token_hex(6)}"}])
    op.add_column("attempts", sa.Column("confirmed_dead", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("attempts", sa.Column("image", sa.String(length=512), nullable=True))
    op.add_column("attempts", sa.Column("launcher", sa.String(length=64), nullable=True))
    op.add_column("leader", sa.Column("trouble", sa.Text(), nullable=True))
