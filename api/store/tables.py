"""The tables. Times are UTC; every table that a caller can reach has its `project_id`, directly or by its job."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy import BigInteger as _BigInteger
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

# Without none_as_null, None is stored as the JSON word null, which IS NULL does not find.
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
BigInteger = _BigInteger().with_variant(Integer(), "sqlite")


class Utc(TypeDecorator[datetime]):
    """An aware time; SQLite forgets the zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    type_annotation_map = {datetime: Utc, dict[str, Any]: Json, list[Any]: Json}


class Project(Base):
    __tablename__ = "projects"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    created_at: Mapped[datetime]
    # Its quotas; None: as much as there is.
    namespace: Mapped[str | None] = mapped_column(String(63), default=None)
    """Where its attempts run on Kubernetes; None: where NAMESPACE says."""
    max_jobs: Mapped[int | None] = mapped_column(default=None)
    max_accelerators: Mapped[int | None] = mapped_column(default=None)
    max_bytes: Mapped[int | None] = mapped_column(BigInteger, default=None)


class ApiKeyRow(Base):
    """An API key, of which nothing is stored that it could be made from again."""

    __tablename__ = "api_keys"
    __table_args__ = (Index("ix_api_keys_page", "created_at", "id"),)
    id: Mapped[str] = mapped_column(String(20), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(63))
    role: Mapped[str] = mapped_column(String(8))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime]
    created_by: Mapped[str | None] = mapped_column(String(20))
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class AuditRow(Base):
    """Who changed what. No foreign keys: it tells of what is gone, too."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_page", "project_id", "id"),)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    project_id: Mapped[str] = mapped_column(String(32))
    key_id: Mapped[str | None] = mapped_column(String(20))
    who: Mapped[str] = mapped_column(String(63))
    action: Mapped[str] = mapped_column(String(48))
    target: Mapped[str] = mapped_column(String(64))
    detail: Mapped[dict[str, Any]]


class PipelineRow(Base):
    """Jobs that were made together. How it stands follows from its jobs."""

    __tablename__ = "pipelines"
    __table_args__ = (Index("ix_pipelines_page", "project_id", "created_at", "id"),)
    id: Mapped[str] = mapped_column(String(20), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(63))
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    created_at: Mapped[datetime]


class JobRow(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_pipeline", "pipeline_id"),
        Index("ix_jobs_page", "project_id", "created_at", "id"),
        Index("ix_jobs_phase", "phase", "priority", "created_at"),
        Index("ix_jobs_name", "project_id", "name"),
        Index("ix_jobs_page_phase", "project_id", "phase", "created_at", "id"),
        Index("ix_jobs_page_stage", "project_id", "stage", "created_at", "id"),
        Index(
            "ix_jobs_metadata", "metadata", postgresql_using="gin", postgresql_ops={"metadata": "jsonb_path_ops"}
        ).ddl_if(dialect="postgresql"),
    )
    id: Mapped[str] = mapped_column(String(20), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(63))
    stage: Mapped[str] = mapped_column(String(32))
    spec: Mapped[dict[str, Any]]
    spec_sha256: Mapped[str] = mapped_column(String(64))
    inputs: Mapped[dict[str, Any]]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    priority: Mapped[int]
    cloned_from: Mapped[str | None] = mapped_column(String(20))
    # A step of a pipeline: what it takes of others, each {path, step, output, job}.
    pipeline_id: Mapped[str | None] = mapped_column(ForeignKey("pipelines.id", ondelete="SET NULL"), default=None)
    step: Mapped[str | None] = mapped_column(String(32), default=None)
    needs: Mapped[list[Any]] = mapped_column(default=list)
    created_at: Mapped[datetime]
    # Written by the API: intent.
    desired: Mapped[str] = mapped_column(String(8), default="run")
    retry_requested: Mapped[bool] = mapped_column(default=False)
    deleted_at: Mapped[datetime | None]
    generation: Mapped[int] = mapped_column(default=1)
    # Written by the operator.
    waiting: Mapped[bool] = mapped_column(default=False)  # for what it needs; its inputs are not all known before
    phase: Mapped[str] = mapped_column(String(16), default="queued")
    phase_since: Mapped[datetime]
    reason: Mapped[str | None] = mapped_column(String(32))
    fault: Mapped[str | None] = mapped_column(String(8))
    message: Mapped[str] = mapped_column(Text, default="")
    attempt: Mapped[int] = mapped_column(default=0)
    fruitless: Mapped[int] = mapped_column(default=0)
    worker_errors: Mapped[int] = mapped_column(default=0)
    ran_for: Mapped[float] = mapped_column(Float, default=0.0)
    not_before: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    # Written by the worker's reports.
    progress: Mapped[dict[str, Any] | None]
    activity: Mapped[str | None] = mapped_column(String(16))
    # The number of the newest event: events are numbered under this row's lock, so that a reader skips none.
    event_count: Mapped[int] = mapped_column(default=0)


class AttemptRow(Base):
    __tablename__ = "attempts"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    # SQLite keeps to no length, and would copy the table to change it.
    object_name: Mapped[str] = mapped_column(String(127).with_variant(String(63), "sqlite"), unique=True)
    uid: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    accepted_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    began_with_step: Mapped[int | None] = mapped_column(BigInteger)
    stopping_since: Mapped[datetime | None]
    stop_reason: Mapped[str | None] = mapped_column(String(32))
    termination: Mapped[dict[str, Any] | None]
    exit_code: Mapped[int | None]
    reason: Mapped[str | None] = mapped_column(String(32))
    fault: Mapped[str | None] = mapped_column(String(8))
    message: Mapped[str] = mapped_column(Text, default="")
    cleaned: Mapped[bool] = mapped_column(default=False)
    # Written by the API: an admin's word.
    confirmed_dead: Mapped[bool] = mapped_column(default=False)
    # Written by the operator, where the cluster tells: an image by its digest.
    image: Mapped[str | None] = mapped_column(String(512))
    # Written by the worker's reports.
    launcher: Mapped[str | None] = mapped_column(String(64))  # which process was accepted; no other one speaks for it
    reported_at: Mapped[datetime | None]
    progressed_at: Mapped[datetime | None]
    last_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    mark: Mapped[int] = mapped_column(BigInteger, default=0)
    resumed_from: Mapped[int | None] = mapped_column(BigInteger)
    progress: Mapped[dict[str, Any] | None]
    summed: Mapped[int | None] = mapped_column(BigInteger, default=0)
    """Its curves have their summaries up to this step; None: none are kept."""
    summed_seq: Mapped[int | None] = mapped_column(BigInteger, default=0)
    """The last report that the summaries know of: the release before takes in others."""


class EventRow(Base):
    __tablename__ = "events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    type: Mapped[str] = mapped_column(String(64))
    level: Mapped[str] = mapped_column(String(8), default="info")
    source: Mapped[str] = mapped_column(String(8))  # api, operator or worker
    message: Mapped[str] = mapped_column(Text, default="")
    attempt: Mapped[int | None]
    step: Mapped[int | None] = mapped_column(BigInteger)


class MetricRow(Base):
    __tablename__ = "metrics"
    __table_args__ = (
        UniqueConstraint("job_id", "attempt", "name", "step", name="uq_metrics_point"),
        Index("ix_metrics_stream", "job_id", "id"),
    )
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    name: Mapped[str] = mapped_column(String(64))
    step: Mapped[int] = mapped_column(BigInteger)
    value: Mapped[float] = mapped_column(Float(53))
    at: Mapped[datetime]
    superseded: Mapped[bool] = mapped_column(default=False)


class SpanRow(Base):
    """The extremes of one curve within some steps that follow each other (api.store.curves)."""

    __tablename__ = "metric_spans"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    span: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    points: Mapped[int]
    low_id: Mapped[int] = mapped_column(BigInteger)
    low: Mapped[float] = mapped_column(Float(53))
    high_id: Mapped[int] = mapped_column(BigInteger)
    high: Mapped[float] = mapped_column(Float(53))


class CheckpointRow(Base):
    __tablename__ = "checkpoints"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    part: Mapped[int] = mapped_column(BigInteger, primary_key=True, default=0)
    path: Mapped[str] = mapped_column(String(1024))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime]
    pruned_at: Mapped[datetime | None]


class SampleRow(Base):
    __tablename__ = "samples"
    __table_args__ = (
        UniqueConstraint("job_id", "attempt", "step", "index", name="uq_samples_answer"),
        Index("ix_samples_stream", "job_id", "id"),
        Index("ix_samples_step", "job_id", "step", "id"),
        # Without it SQLite gives the number of a deleted row again, and who follows would miss what has it.
        {"sqlite_autoincrement": True},
    )
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    step: Mapped[int] = mapped_column(BigInteger)
    index: Mapped[int] = mapped_column(BigInteger)
    prompt: Mapped[str] = mapped_column(Text)
    answer: Mapped[str] = mapped_column(Text)
    tokens: Mapped[list[Any]]
    kl: Mapped[list[Any]]
    terms: Mapped[dict[str, Any]]
    reward: Mapped[float] = mapped_column(Float(53))
    ended: Mapped[bool]
    at: Mapped[datetime]
    superseded: Mapped[bool] = mapped_column(default=False)


class FileRow(Base):
    __tablename__ = "files"
    __table_args__ = (Index("ix_files_page", "project_id", "created_at", "id"),)
    id: Mapped[str] = mapped_column(String(20), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    kind: Mapped[str] = mapped_column(String(16))
    rows: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(String(1024))
    created_at: Mapped[datetime]


class ModelRow(Base):
    __tablename__ = "models"
    __table_args__ = (
        UniqueConstraint("project_id", "name", "version", "kind", name="uq_models_version"),
        Index("ix_models_page", "project_id", "created_at", "id"),
    )
    id: Mapped[str] = mapped_column(String(20), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(63))
    version: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    # No foreign key: a model outlives its job, and keeps its lineage.
    job_id: Mapped[str] = mapped_column(String(20))
    attempt: Mapped[int]
    path: Mapped[str] = mapped_column(String(1024))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    lineage: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class ModelNameRow(Base):
    """The newest version that a name was ever given. It stays when models go: no version is given twice."""

    __tablename__ = "model_names"
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    newest: Mapped[int]


class IdempotencyRow(Base):
    __tablename__ = "idempotency_keys"
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(20))
    created_at: Mapped[datetime]


class InstallationRow(Base):
    """One row, made with the database: what tells this control plane's objects on a cluster from another's."""

    __tablename__ = "installation"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))
    # Where its attempts run; None: no operator has started yet.
    place: Mapped[str | None] = mapped_column(String(80))


class LeaderRow(Base):
    """One row. Times are the database's own clock, as seconds since 1970."""

    __tablename__ = "leader"
    id: Mapped[int] = mapped_column(primary_key=True)
    holder: Mapped[str] = mapped_column(String(128))
    epoch: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[float] = mapped_column(Float(53))
    # Why the leader, or the last that tried to lead, does not hear what happens on the cluster.
    trouble: Mapped[str | None] = mapped_column(Text)


class SigningKeyRow(Base):
    __tablename__ = "signing_keys"
    id: Mapped[str] = mapped_column(String(20), primary_key=True)
    secret: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]
    retired_at: Mapped[datetime | None]
