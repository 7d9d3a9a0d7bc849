"""What lists are narrowed by, as indexes. By itself: who writes to the jobs waits for as long as they are made."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_jobs_page_phase", "jobs", ["project_id", "phase", "created_at", "id"])
    op.create_index("ix_jobs_page_stage", "jobs", ["project_id", "stage", "created_at", "id"])
    if op.get_context().dialect.name == "postgresql":
        op.create_index(
            "ix_jobs_metadata",
            "jobs",
            ["metadata"],
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
        )
