"""The tables. Constraint names follow one convention. Only the migrations create the schema."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time in UTC; read with its zone even from databases that store none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime needs a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=CONVENTION)
    type_annotation_map = {
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(),
        list[Any]: JSON(),
    }


class TeamRow(Base):
    __tablename__ = "teams"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    created_at: Mapped[datetime]
    weight: Mapped[float] = mapped_column(default=1.0)
    max_running_trials: Mapped[int | None]
    max_gpus: Mapped[float | None]
    max_studies: Mapped[int | None]
    max_storage_bytes: Mapped[int | None] = mapped_column(BigInteger)


class TokenRow(Base):
    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    role: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class SessionRow(Base):
    """A browser's login: the digest of its cookie, and the token it logged in with."""

    __tablename__ = "sessions"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_id: Mapped[str] = mapped_column(ForeignKey("tokens.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class StudyRow(Base):
    __tablename__ = "studies"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(16), index=True)
    phase: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    # Large and rarely changed: parsed once per revision and kept.
    spec: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    plan: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    # Recorded once, by the first trial that makes a step.
    inputs: Mapped[dict[str, Any] | None]
    candidates: Mapped[list[Any] | None]
    version: Mapped[int] = mapped_column(Integer, default=0)
    revision: Mapped[int] = mapped_column(Integer, default=0)
    # Columns that scheduling needs, so that the spec need not be parsed.
    priority: Mapped[int]
    concurrency: Mapped[int]
    planned: Mapped[int]
    cpus: Mapped[float]
    gpus: Mapped[float]
    # All resources of a trial; earlier revisions had only CPUs and GPUs.
    shape: Mapped[dict[str, Any] | None]
    model_key: Mapped[str] = mapped_column(Text)
    storage_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    gpu_seconds: Mapped[float] = mapped_column(default=0.0)
    # Linked studies have the same id here; the rest of a study's place among them is in the object.
    group_id: Mapped[str | None] = mapped_column(String(32), index=True)
    grouping: Mapped[dict[str, Any] | None]
    deleted_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    __table_args__ = (Index(None, "team_id", "id"),)


class StudyCountRow(Base):
    """Numbers of trials by phase and state, updated with every change, so that reads need not scan the trials."""

    __tablename__ = "study_counts"
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    phase: Mapped[str] = mapped_column(String(16), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), primary_key=True)
    count: Mapped[int]


class EventRow(Base):
    """An event, numbered by the study's version under the lock of its row: without gaps and committed in order."""

    __tablename__ = "events"
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]]
    at: Mapped[datetime] = mapped_column(index=True)


class PredictionRow(Base):
    __tablename__ = "predictions"
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    predictor: Mapped[str] = mapped_column(String(32), primary_key=True)
    # Predictors are shown in the order in which the study names them.
    position: Mapped[int]
    ranking: Mapped[list[Any]]


class TrialRow(Base):
    __tablename__ = "trials"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    number: Mapped[int]
    phase: Mapped[str] = mapped_column(String(16))
    method: Mapped[str] = mapped_column(String(16))
    candidate: Mapped[str | None] = mapped_column(String(64))
    params: Mapped[dict[str, Any]]
    point: Mapped[dict[str, Any] | None]
    attrs: Mapped[dict[str, Any] | None]
    seed: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    parameters: Mapped[int]
    metrics: Mapped[dict[str, Any]]
    curve: Mapped[list[Any]]
    scores: Mapped[list[Any] | None] = mapped_column(deferred=True)
    failure_kind: Mapped[str | None] = mapped_column(String(16))
    failure_message: Mapped[str | None] = mapped_column(Text)
    # Not a foreign key: trials and leases would refer to each other in a circle.
    lease_id: Mapped[str | None] = mapped_column(String(64))
    attempts: Mapped[int] = mapped_column(default=0)
    errors: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)
    checkpoint: Mapped[str | None] = mapped_column(Text)
    artifact: Mapped[str | None] = mapped_column(Text)
    artifact_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    # The trial that this one was cloned from, and the adapter that its training began with, if any.
    cloned_from: Mapped[str | None] = mapped_column(String(32))
    start_from: Mapped[str | None] = mapped_column(Text)
    resources: Mapped[dict[str, Any]]
    stop_reason: Mapped[str | None] = mapped_column(Text)
    version: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("study_id", "number"),
        Index(None, "study_id", "state", "number"),
        Index(None, "study_id", "phase", "version"),
    )


class LeaseRow(Base):
    """One attempt at a trial. The id is the fencing token."""

    __tablename__ = "leases"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id", ondelete="CASCADE"), index=True)
    attempt: Mapped[int]
    runner: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(16))
    acquired_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    result: Mapped[dict[str, Any] | None]
    # When the trial last made progress; its runner may have been seen later.
    progress_at: Mapped[datetime | None]
    progress_step: Mapped[int] = mapped_column(default=-1)
    # The last step of the trial's training, once the runner knows it.
    total_steps: Mapped[int | None]
    __table_args__ = (UniqueConstraint("trial_id", "attempt"), Index(None, "state", "expires_at"))


class MetricRow(Base):
    __tablename__ = "metrics"
    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float] = mapped_column(Float)
    reported_at: Mapped[datetime]


class LogRow(Base):
    """A piece of an attempt's output; ``start`` is its position in the whole output, in characters."""

    __tablename__ = "trial_logs"
    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    text: Mapped[str] = mapped_column(Text)


class RunnerRow(Base):
    __tablename__ = "runners"
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    team_id: Mapped[str | None] = mapped_column(String(32))
    cpus: Mapped[float]
    gpus: Mapped[float]
    shape: Mapped[dict[str, Any] | None]
    warm: Mapped[list[Any]]
    lease_id: Mapped[str | None] = mapped_column(String(64))
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    host: Mapped[str | None] = mapped_column(String(200))


class HostRow(Base):
    """A machine with runners, and its failures."""

    __tablename__ = "hosts"
    # The team of its workers, so that one team's workers cannot blame another team's machines. Empty: all teams.
    team_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    failures: Mapped[int] = mapped_column(default=0)
    reason: Mapped[str | None] = mapped_column(Text)
    failed_at: Mapped[datetime | None]
    quarantined_at: Mapped[datetime | None]


class IdempotencyRow(Base):
    """The answer to a POST, kept so that a repeated request gets the same answer.

    The content may hold a secret that is shown once, so it is encrypted with the caller's token, which is not stored.
    """

    __tablename__ = "idempotency_keys"
    scope: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request: Mapped[str] = mapped_column(String(64))
    status: Mapped[int]
    content: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(index=True)


class AuditRow(Base):
    """Who changed what. Rows outlive the tokens and studies they name, so no column is a foreign key."""

    __tablename__ = "audit_log"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    at: Mapped[datetime]
    team_id: Mapped[str | None] = mapped_column(String(32))
    token_id: Mapped[str] = mapped_column(String(32))
    token: Mapped[str] = mapped_column(String(200))
    role: Mapped[str] = mapped_column(String(16))
    request_id: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(200))
    detail: Mapped[dict[str, Any]]
    __table_args__ = (Index(None, "team_id", "id"),)


class WebhookRow(Base):
    __tablename__ = "webhooks"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"), index=True)
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[list[Any]]
    # A signing key, sealed: see service.tenancy.sealing.
    secret: Mapped[str] = mapped_column(String(100))
    active: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[datetime]


class DeliveryRow(Base):
    """An event for a webhook, written with the event itself and sent afterwards."""

    __tablename__ = "webhook_deliveries"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    study_id: Mapped[str] = mapped_column(String(32))
    number: Mapped[int]
    kind: Mapped[str] = mapped_column(String(32))
    body: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[datetime | None]
    status: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    delivered_at: Mapped[datetime | None]
    __table_args__ = (Index(None, "state", "next_at"), Index(None, "webhook_id", "id"))
