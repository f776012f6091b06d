"""Records of teams, runners, webhooks and the audit log."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .shape import Shape


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who changed what."""

    id: str
    at: datetime
    team_id: str | None
    token_id: str
    token: str
    role: str
    request_id: str
    action: str
    target: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a team's events are sent."""

    id: str
    team_id: str
    url: str
    events: list[str]
    secret: str
    active: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one webhook."""

    id: str
    webhook_id: str
    study_id: str
    number: int
    kind: str
    state: str
    attempts: int
    next_at: datetime | None
    status: int | None
    error: str | None
    created_at: datetime
    delivered_at: datetime | None
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunnerSeen:
    """A runner as the server last saw it."""

    name: str
    team_id: str | None
    shape: Shape
    warm: list[str]
    lease_id: str | None
    first_seen_at: datetime
    last_seen_at: datetime
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """A machine with runners. A quarantined one gets no trials.

    ``team_id`` is the team of its workers; empty if they serve all teams.
    """

    team_id: str
    name: str
    failures: int
    reason: str | None
    failed_at: datetime | None
    quarantined_at: datetime | None


@dataclass(frozen=True, slots=True)
class Team:
    """A team with its share of the cluster and its quotas (``None``: no limit)."""

    id: str
    name: str
    created_at: datetime
    weight: float = 1.0
    max_running_trials: int | None = None
    max_gpus: float | None = None
    max_studies: int | None = None
    max_storage_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """A team's current use."""

    running_trials: int = 0
    cpus: float = 0.0
    gpus: float = 0.0
    open_studies: int = 0
    storage_bytes: int = 0
