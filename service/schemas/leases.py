"""The workers' side on the wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ..domain.inputs import Inputs
from ..domain.plan import LayerShape
from ..domain.resources import resource_faults
from ..domain.states import FailureKind, TrialPhase, TrialState
from ..domain.study_spec import PLAIN, Name, StudySpec
from .wire import Sent, ShapeFields, Time, Wire, without_control

Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
MetricName = Annotated[str, Field(min_length=1, max_length=100, pattern=PLAIN)]
Address = Annotated[str, Field(max_length=4096, pattern=PLAIN)]


class LeaseRequest(ShapeFields, Sent):
    runner: Name
    host: Name | None = Field(default=None, description="The machine that the runner is on.")
    warm: Annotated[list[Annotated[str, Field(max_length=4200, pattern=PLAIN)]], Field(max_length=100)] = []
    max: Annotated[int, Field(strict=True, ge=1, le=64)] = 1


class LeasedTrial(Wire):
    id: str
    number: int
    study_id: str
    phase: TrialPhase
    method: str
    seed: int
    params: dict[str, Any]
    study: StudySpec
    checkpoint: str | None
    attempt: int
    start_from: str | None = Field(default=None, description="The adapter that the training begins with, if any.")
    layers: list[LayerShape] = Field(default=[], description="The layers that an adapter of the study adapts.")
    inputs: Inputs | None = Field(
        default=None, description="What the study's trials are trained on; null until one has made a step."
    )


class LeaseOut(Wire):
    id: str
    expires_at: Time
    heartbeat_seconds: float = Field(description="Report at least this often, to keep the lease with room to spare.")
    trial: LeasedTrial


class LeasesOut(Wire):
    leases: list[LeaseOut]
    retry_after_seconds: float | None = Field(
        default=None, description="Where `leases` is empty: ask again after so many seconds."
    )


class ReportIn(Sent):
    step: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
    metrics: Annotated[dict[MetricName, Finite], Field(max_length=200)]


# Values of one request: bounds the time for which it holds SQLite's writer.
MOST_VALUES = 2000


def _each_value_once(reports: list[ReportIn]) -> list[ReportIn]:
    count = sum(len(report.metrics) for report in reports)
    if count > MOST_VALUES:
        raise ValueError(f"there are {count} values, more than the {MOST_VALUES} of one request: send several")
    named: set[tuple[int, str]] = set()
    for report in reports:
        for name in report.metrics:
            if (report.step, name) in named:
                raise ValueError(f"{name} of step {report.step} is reported twice in one request")
            named.add((report.step, name))
    return reports


class ReportsIn(Sent):
    """Reports since the last call; none is a heartbeat. ``total_steps`` is the last step of the trial's training."""

    reports: Annotated[list[ReportIn], Field(max_length=1000), AfterValidator(_each_value_once)] = []
    checkpoint: Address | None = None
    total_steps: Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)] | None = None


class DirectiveOut(Wire):
    directive: Literal["continue", "stop"]
    reason: str | None
    expires_at: Time


class InputsOut(Wire):
    inputs: Inputs


class LogIn(Sent):
    """Output of the attempt since the last call; ``start`` is its place, in characters, in the whole."""

    start: Annotated[int, Field(strict=True, ge=0, le=2**53)]
    text: Annotated[str, Field(max_length=262_144), AfterValidator(without_control)]


class LogTaken(Wire):
    next: int = Field(description="Where the log ends now: what is sent next begins there.")


# Most characters of a failure's message.
MOST_MESSAGE = 20_000


class FailureIn(Sent):
    kind: FailureKind
    message: Annotated[str, Field(max_length=MOST_MESSAGE), AfterValidator(without_control)]


class MeasuredIn(Sent):
    r1: Annotated[int, Field(strict=True, ge=1)]
    r2: Annotated[int, Field(strict=True, ge=1)]
    r: Annotated[int, Field(strict=True, ge=1)]
    score: Finite
    reason: Annotated[str, Field(max_length=2000), AfterValidator(without_control)]
    group: Annotated[str | None, Field(max_length=64)] = Field(
        default=None, description="The group of layers that was measured; null: all of them."
    )


def _measured(resources: dict[str, Any]) -> dict[str, Any]:
    if faults := resource_faults(resources):
        raise ValueError(f"resources: {'; '.join(faults[:5])}")
    return resources


class ResultIn(Sent):
    state: Literal["completed", "pruned", "infeasible", "failed", "cancelled", "released"]
    metrics: Annotated[dict[MetricName, Finite], Field(max_length=200)] = {}
    artifact: Address | None = None
    resources: Annotated[dict[str, Any], AfterValidator(_measured)] = Field(
        default={}, description="What the attempt used: numbers, text, or objects of those, by name."
    )
    failure: FailureIn | None = None
    scores: Annotated[list[Finite], Field(max_length=1_000_000)] | None = Field(
        default=None, description="The objective's value on every example of the split, where it is a mean over them."
    )
    predictions: Annotated[list[MeasuredIn], Field(max_length=100_000)] = Field(
        default=[],
        description="Of a measurement: every configuration in its params, best first; then those of each group.",
    )


class ResultOut(Wire):
    trial_state: TrialState


class DemandItem(ShapeFields, Wire):
    slots: int


class DemandOut(Wire):
    items: list[DemandItem]
