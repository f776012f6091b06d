"""Decide what an attempt's end makes of its trial and study: pure rules, nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..domain.records import Failure, Study, Trial
from ..domain.states import STUDY_ENDED, FailureKind, StopReason, TrialState

# Consecutive losses without a new checkpoint after which a trial fails.
MOST_LOSSES = 5

ResultState = Literal["completed", "pruned", "infeasible", "failed", "cancelled", "released"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The trial's next state and the values to write with it; ``study_failure`` says why its study fails, too."""

    state: TrialState
    values: Mapping[str, Any] = field(default_factory=dict)
    study_failure: str | None = None


def of_result(
    study: Study, trial: Trial, state: ResultState, failure: Failure | None, values: Mapping[str, Any]
) -> Outcome:
    """The outcome of a result.

    ``values`` are what the result says of the trial; they are dropped if it starts over without a failure.

    | result | stop reason of the trial | study | outcome |
    |---|---|---|---|
    | released | not cancelled | open | queued |
    | cancelled | paused | open | queued |
    | cancelled | timed out | open | infeasible |
    | released, cancelled | waiting | open | waiting; pruned without a checkpoint |
    | released, cancelled | any other | any | cancelled |
    | failed, infeasible | any | any | by the kind of failure: :func:`of_failure` |
    | completed, pruned | any | any | as the result says |
    """
    is_open = study.state not in STUDY_ENDED
    if state in ("released", "cancelled"):
        starts_over = (
            trial.stop_reason != StopReason.CANCELLED if state == "released" else trial.stop_reason == StopReason.PAUSED
        )
        if is_open and trial.stop_reason == StopReason.WAITING:
            return _held(trial, values)
        if is_open and starts_over:
            return Outcome(TrialState.QUEUED, {"lease_id": None, "stop_reason": None})
        if is_open and state == "cancelled" and trial.stop_reason == StopReason.TIMED_OUT:
            return of_timeout(study, values)
        return Outcome(TrialState.CANCELLED, values)
    if failure is not None and state in ("failed", "infeasible"):
        return of_failure(study, trial, failure, values)
    return Outcome(TrialState(state), values)


def of_failure(study: Study, trial: Trial, failure: Failure, values: Mapping[str, Any]) -> Outcome:
    """The outcome of a failure, by its kind.

    | kind | in an open study | in an ended study |
    |---|---|---|
    | out of memory, diverged | infeasible | infeasible |
    | preempted, lost | queued; failed at the fifth loss without a new checkpoint | cancelled |
    | error, stalled | queued while the user's retries last, then failed | cancelled |
    | rejected | failed, and the study with it | cancelled |
    | any other | failed | cancelled |
    """
    values = {**values, "failure": failure}
    kind = failure.kind
    if kind in (FailureKind.OUT_OF_MEMORY, FailureKind.DIVERGED):
        return Outcome(TrialState.INFEASIBLE, values)
    if study.state in STUDY_ENDED:
        return Outcome(TrialState.CANCELLED, values)
    if kind in (FailureKind.PREEMPTED, FailureKind.LOST):
        return of_loss(trial, failure.message)
    if kind in (FailureKind.ERROR, FailureKind.STALLED) and trial.errors < study.spec.search.retries:
        return Outcome(TrialState.QUEUED, {**values, "errors": trial.errors + 1, "lease_id": None})
    rejected = f"trial {trial.number} cannot run: {failure.message}" if kind is FailureKind.REJECTED else None
    return Outcome(TrialState.FAILED, values, study_failure=rejected)


def of_loss(trial: Trial, reason: str) -> Outcome:
    """Losing a runner costs a trial nothing, until it happens ``MOST_LOSSES`` times without a new checkpoint.

    The lease keeps its trial: its runner may come back until the trial is leased again.
    """
    if trial.stop_reason == StopReason.WAITING and trial.checkpoint is not None:
        return _held(trial, {})
    losses = trial.losses + 1
    if losses < MOST_LOSSES:
        return Outcome(TrialState.QUEUED, {"losses": losses})
    message = f"its runner was lost {losses} times without a new checkpoint: {reason}"
    return Outcome(TrialState.FAILED, {"losses": losses, "failure": Failure(FailureKind.LOST, message)})


def _held(trial: Trial, values: Mapping[str, Any]) -> Outcome:
    """A trial that is held at a rung. Without a checkpoint it could not be continued, so it stops for good."""
    if trial.checkpoint is None:
        return Outcome(TrialState.PRUNED, {**values, "stop_reason": StopReason.PRUNED})
    return Outcome(TrialState.WAITING, {**values, "lease_id": None, "stop_reason": None})


def of_timeout(study: Study, values: Mapping[str, Any]) -> Outcome:
    """A trial that exceeded its time limit would exceed it again, so it is infeasible."""
    minutes = study.spec.limits.trial_minutes
    message = f"the trial ran for longer than limits.trial_minutes ({minutes:g}) allows"
    return Outcome(TrialState.INFEASIBLE, {**values, "failure": Failure(FailureKind.TIMED_OUT, message)})
