"""Trials and metrics on the wire."""

from __future__ import annotations

from typing import Any

from ..domain.states import FailureKind, TrialPhase, TrialState
from .common import Time, Wire


class FailureOut(Wire):
    kind: FailureKind
    message: str


class TrialOut(Wire):
    id: str
    study_id: str
    number: int
    phase: TrialPhase
    method: str
    candidate: str | None
    params: dict[str, Any]
    parameters: int
    seed: int
    state: TrialState
    metrics: dict[str, float]
    failure: FailureOut | None
    attempts: int
    artifact: str | None
    resources: dict[str, Any]
    created_at: Time
    started_at: Time | None
    finished_at: Time | None


class MetricOut(Wire):
    step: int
    name: str
    value: float
    reported_at: Time
