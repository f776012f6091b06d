"""Trials and metrics on the wire."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ..domain.search_space import Positive, Size
from ..domain.states import FailureKind, TrialPhase, TrialState
from ..domain.study_spec import SearchedParameters
from .wire import Sent, Time, Wire


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
    artifact_bytes: int
    stop_reason: str | None
    resources: dict[str, Any]
    created_at: Time
    started_at: Time | None
    finished_at: Time | None


class MetricOut(Wire):
    step: int
    name: str
    value: float
    reported_at: Time


class TrialLogOut(Wire):
    """A stretch of an attempt's output. Ask again with ``after`` = ``next`` for what came since."""

    attempt: int
    attempts: int
    start: int = Field(description="Where the text begins in the attempt's whole output, in characters.")
    next: int
    text: str
    running: bool = Field(description="Whether more may come.")


class Configuration(SearchedParameters, Sent):
    """A configuration made by hand."""

    r1: Size
    r2: Size
    r: Size
    alpha: Annotated[Positive, Field(strict=True)]
    learning_rate: Annotated[Positive, Field(strict=True, le=1e6)]

    def required(self) -> dict[str, Any]:
        """The parameters that every study searches."""
        return self.model_dump(include={"r1", "r2", "r", "alpha", "learning_rate"})


class TrialRequest(Sent):
    """A trial to put at the end of the queue."""

    params: Configuration
