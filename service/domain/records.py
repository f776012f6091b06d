"""Records of the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from .group_spec import Grouping
from .inputs import Inputs
from .plan import Plan
from .shape import Shape
from .states import FailureKind, LeaseState, StudyPhase, StudyState, TrialPhase, TrialState
from .study_spec import StudySpec


class Role(StrEnum):
    """What a token may do. An admin may do everything.

    A worker leases trials of its team, reports on them and reads the demand, and may do nothing else. A pool does the
    same for all teams.
    """

    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"
    WORKER = "worker"
    POOL = "pool"

    @property
    def runs_trials(self) -> bool:
        """Whether it is for runners, and opens no dashboard."""
        return self in (Role.WORKER, Role.POOL)


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller: role and team of its token, and its request."""

    token_id: str
    team_id: str
    team: str
    role: Role
    name: str
    request_id: str = ""

    @property
    def scope(self) -> str | None:
        """The team whose rows the caller may see; ``None`` (all) for an admin and a pool."""
        return None if self.role in (Role.ADMIN, Role.POOL) else self.team_id


@dataclass(frozen=True, slots=True)
class Token:
    """A token with the digest of its secret."""

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

    ``runs_as`` names the candidate whose trials count for this one: itself, or an earlier identical one.
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
    # Increases with every change of the study or its trials; the number of its newest event.
    version: int
    # Increases with every change by a user.
    revision: int
    # Search trials to run: as asked for, or fewer if the space is smaller.
    planned: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    storage_bytes: int = 0
    gpu_seconds: float = 0.0
    # Data and base model, known once a trial has made a step.
    inputs: Inputs | None = None
    # Its place among linked studies.
    group: Grouping | None = None


# Numbers of a study's trials.
TrialCounts = Mapping[tuple[TrialPhase, TrialState], int]


def next_number(counts: TrialCounts) -> int:
    """The number of a study's next trial: numbers from 0 on have no gaps, and the measurement has none of them."""
    return sum(n for (phase, _), n in counts.items() if phase is not TrialPhase.MEASUREMENT)


@dataclass(frozen=True, slots=True)
class StudyLoad:
    """The columns that scheduling needs of a study that may have work."""

    id: str
    team_id: str
    state: StudyState
    phase: StudyPhase
    priority: int
    concurrency: int
    planned: int
    shape: Shape
    model_key: str
    version: int
    revision: int
    counts: TrialCounts
    # Whether its team's running trials are limited.
    limited: bool = False


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
    # Reported values of the pruning metric, one per evaluation.
    curve: list[float] = field(default_factory=list)
    version: int = 0
    artifact_bytes: int = 0
    # The trial whose configuration this one changes, and the adapter that its training began with.
    cloned_from: str | None = None
    start_from: str | None = None


# The version of an observation whose trial is not stored yet.
UNRECORDED = -1


@dataclass(frozen=True, slots=True)
class Observation:
    """A trial as the search sees it.

    ``version`` is the study's version when the trial last changed. Observations of a trial with the same version are
    equal, except for ``UNRECORDED``.
    """

    number: int
    state: TrialState
    params: dict[str, Any]
    point: dict[str, Any] | None = None
    attrs: dict[str, Any] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    curve: tuple[float, ...] = ()
    failure: FailureKind | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a study; numbers of one study have no gaps."""

    study_id: str
    number: int
    kind: str
    at: datetime
    data: dict[str, Any]


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
    progress_at: datetime | None = None
    progress_step: int = -1
    total_steps: int | None = None


@dataclass(frozen=True, slots=True)
class TrialProgress:
    """How far a running trial is: its step, how many there will be, and times in seconds; ``left`` is an estimate."""

    step: int
    total_steps: int | None
    seconds: float
    left: float | None
    runner: str

    @classmethod
    def of(cls, lease: Lease, now: datetime) -> TrialProgress:
        """From a held lease. An attempt that began at a checkpoint says nothing about its pace."""
        seconds = max(0.0, (now - lease.acquired_at).total_seconds())
        step, total = max(0, lease.progress_step), lease.total_steps
        seen = max(0.0, ((lease.progress_at or now) - lease.acquired_at).total_seconds())
        left = None
        if total is not None and step > 0 and lease.attempt == 1:
            left = max(0.0, seen * total / step - seconds)
        return cls(step, total, seconds, left, lease.runner)


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
    attrs: dict[str, Any] | None = None
    cloned_from: str | None = None
    start_from: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A lease with its trial and study; ``host_failed`` if failures are held against its runner's host."""

    lease: Lease
    trial: Trial
    study: Study
    host_failed: bool


@dataclass(frozen=True, slots=True)
class MetricPoint:
    step: int
    name: str
    value: float
    reported_at: datetime


class RankingState(StrEnum):
    """The state of a ranking; ``pending`` ones wait for a runner's measurement."""

    READY = "ready"
    PENDING = "pending"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """One line of a predictor's ranking."""

    r1: int
    r2: int
    r: int
    parameters: int
    score: float
    reason: str
    # The group of layers that it is for; none where it is for all.
    group: str | None = None

    @property
    def structure(self) -> tuple[int, int, int]:
        """The component sizes."""
        return self.r1, self.r2, self.r


@dataclass(frozen=True, slots=True)
class Ranking:
    """A predictor's ranking, best first, or the reason why there is none."""

    predictor: str
    state: RankingState
    reason: str | None
    predictions: list[StoredPrediction]
    # A ranking of each group of layers, where groups have structures of their own.
    groups: dict[str, list[StoredPrediction]] = field(default_factory=dict)
