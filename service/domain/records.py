"""What the database remembers, as plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from .plan import Plan
from .states import FailureKind, LeaseState, StudyPhase, StudyState, TrialPhase, TrialState
from .study_spec import StudySpec


class Role(StrEnum):
    """What a token may do. An admin may do all; a worker only leases, reports and reads demand."""

    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling: the token's role and team."""

    token_id: str
    team_id: str
    team: str
    role: Role
    name: str


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is remembered: never the secret, only its digest."""

    id: str
    team_id: str
    team: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration that the confirmation trains with every seed.

    ``runs_as`` names the candidate whose trials stand for this one: itself, or an earlier one that is identical.
    """

    name: str
    title: str
    method: str
    params: dict[str, Any]
    parameters: int
    runs_as: str


@dataclass(frozen=True, slots=True)
class Study:
    id: str
    team_id: str
    name: str
    state: StudyState
    phase: StudyPhase
    reason: str | None
    spec: StudySpec
    plan: Plan
    candidates: list[Candidate]
    version: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Failure:
    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class Trial:
    id: str
    study_id: str
    number: int
    phase: TrialPhase
    method: str
    candidate: str | None
    params: dict[str, Any]
    point: dict[str, Any] | None
    seed: int
    state: TrialState
    parameters: int
    metrics: dict[str, float]
    scores: list[float] | None
    failure: Failure | None
    lease_id: str | None
    attempts: int
    errors: int
    losses: int
    checkpoint: str | None
    artifact: str | None
    resources: dict[str, Any]
    stop_reason: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    # Values of the first objective by evaluation, 1-based, as reported so far.
    curve: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lease:
    id: str
    trial_id: str
    attempt: int
    runner: str
    state: LeaseState
    acquired_at: datetime
    expires_at: datetime
    result: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class NewTrial:
    """A trial to be recorded."""

    number: int
    phase: TrialPhase
    method: str
    params: dict[str, Any]
    parameters: int
    seed: int
    point: dict[str, Any] | None = None
    candidate: str | None = None


@dataclass(frozen=True, slots=True)
class MetricPoint:
    step: int
    name: str
    value: float
    reported_at: datetime


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """One line of a predictor's ranking."""

    r1: int
    r2: int
    r: int
    parameters: int
    score: float
    reason: str

    @property
    def structure(self) -> tuple[int, int, int]:
        return self.r1, self.r2, self.r
