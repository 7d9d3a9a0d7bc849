"""Summaries of long curves."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    # Before the table whose key locks that of the jobs: a report has both tables when it waits for either.
    # Null: attempts of before, and those that the release before makes. Nobody sums these up.
    op.add_column("attempts", sa.Column("summed", BIG, nullable=True))
    op.add_column("attempts", sa.Column("summed_seq", BIG, nullable=True))
    op.create_table(
        "metric_spans",
        sa.Column("job_id", sa.String(length=20), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("span", BIG, nullable=False),
        sa.Column("points", sa.Integer(), nullable=False),
        sa.Column("low_id", BIG, nullable=False),
        sa.Column("low", sa.Float(precision=53), nullable=False),
        sa.Column("high_id", BIG, nullable=False),
        sa.Column("high", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "attempt", "name", "span"),
    )
