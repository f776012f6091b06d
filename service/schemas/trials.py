"""Trials and metrics on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from ..domain.ranges import Positive, Size
from ..domain.records import Trial, TrialProgress
from ..domain.search_spec import GroupedSizes
from ..domain.states import FailureKind, TrialPhase, TrialState
from ..domain.structure import SIZES, of_groups
from ..domain.study_spec import SearchedParameters
from ..domain.vocabulary import PLAIN
from ..errors import Fault, InvalidRequest
from .wire import Sent, Time, Wire


class FailureOut(Wire):
    kind: FailureKind
    message: str


class TrialProgressOut(Wire):
    """How far a running trial is; times are in seconds, and ``left`` is an estimate from its pace so far."""

    step: int
    total_steps: int | None
    seconds: float
    left: float | None
    runner: str


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
    cloned_from: str | None = Field(default=None, description="The trial whose configuration this one changes.")
    start_from: str | None = Field(default=None, description="The adapter that its training began with.")
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    progress: TrialProgressOut | None = Field(default=None, description="Of a running trial, as of its last heartbeat.")

    @classmethod
    def of(cls, trial: Trial, progress: Mapping[str, TrialProgress]) -> TrialOut:
        """From the record, and the progress of running trials by id."""
        found = cls.model_validate(trial)
        if trial.state is TrialState.RUNNING and trial.id in progress:
            found = found.model_copy(update={"progress": TrialProgressOut.model_validate(progress[trial.id])})
        return found


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


# What a configuration of CDKA has in every study.
REQUIRED = ("r1", "r2", "r", "alpha", "learning_rate")


class Configuration(SearchedParameters, Sent):
    """A configuration made by hand; of a clone, what differs from its trial.

    Without ``from``, r1, r2, r, alpha and learning_rate are required. Where ``adapter.groups`` names groups, ``groups``
    may give each its own sizes in place of r1, r2 and r.
    """

    r1: Size | None = None
    r2: Size | None = None
    r: Size | None = None
    groups: GroupedSizes | None = None
    alpha: Annotated[Positive, Field(strict=True)] | None = None
    learning_rate: Annotated[Positive, Field(strict=True, le=1e6)] | None = None

    def required(self) -> dict[str, Any]:
        """The parameters that every study searches.

        Raises:
            InvalidRequest: one is missing.
        """
        required = REQUIRED if self.groups is None else [name for name in REQUIRED if name not in SIZES]
        missing = [name for name in required if getattr(self, name) is None]
        if missing:
            faults = [Fault(f"#/params/{name}", "missing; name it, or clone a trial with from") for name in missing]
            raise InvalidRequest("the configuration is incomplete; nothing was enqueued", faults)
        found = {name: getattr(self, name) for name in required}
        if self.groups is None:
            return found
        if any(getattr(self, name) is not None for name in SIZES):
            fault = Fault("#/params/groups", "groups have sizes of their own; leave r1, r2 and r out")
            raise InvalidRequest("the configuration has its sizes twice; nothing was enqueued", [fault])
        return {**of_groups({g: (s.r1, s.r2, s.r) for g, s in self.groups.items()}), **found}

    def given(self) -> dict[str, Any]:
        """The values that are given."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class TrialRequest(Sent):
    """A trial to put at the end of the queue: a configuration, or with ``from`` a trial's with changes.

    With ``warm`` the training begins with that trial's adapter, which must have the same structure. Such a trial is no
    candidate for the best found, because it was trained for longer.
    """

    params: Configuration = Configuration()
    source: Annotated[str, Field(min_length=1, max_length=64, pattern=PLAIN)] | None = Field(
        default=None, alias="from", description="The id of a trial of this study."
    )
    warm: Annotated[bool, Field(strict=True)] = False
