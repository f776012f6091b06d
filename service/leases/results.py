"""End an attempt: by a result, by a failure, or because its runner was lost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy.orm import Session

from ..context.context import Context
from ..db.leases import Leases
from ..db.retries import retried
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.metrics import COMPUTED, PARAMETERS
from ..domain.records import Failure, Lease, Study, Trial
from ..domain.states import (
    STUDY_ENDED,
    EventKind,
    FailureKind,
    LeaseState,
    StopReason,
    StudyState,
    TrialPhase,
    TrialState,
)
from ..errors import Fault, InvalidRequest, LeaseLost, NotFound
from ..studies.predictions import MEASURED, measured_ranking
from ..studies.progress import advance
from .fences import held, reclaim
from .hosts import blame, clear

# Consecutive losses without a new checkpoint after which a trial fails.
MOST_LOSSES = 5
# Failures that may be the host's fault.
_BLAMED = frozenset({FailureKind.ERROR, FailureKind.PREEMPTED, FailureKind.LOST})
_RETRIED = frozenset({FailureKind.ERROR, FailureKind.STALLED})

ResultState = Literal["completed", "pruned", "infeasible", "failed", "cancelled", "released"]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an attempt, as a runner sends it."""

    state: ResultState
    metrics: dict[str, float] = field(default_factory=dict)
    artifact: str | None = None
    resources: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    scores: list[float] | None = None
    predictions: list[dict[str, Any]] = field(default_factory=list)


@retried
def finish(ctx: Context, lease_id: str, team_id: str | None, result: Result) -> TrialState:
    """Record an attempt's result and advance its study. Repeating the same result changes nothing.

    Raises:
        NotFound: there was never such a lease in this team.
        LeaseLost: the lease is no longer held; nothing was changed.
        InvalidRequest: a completed trial without its objective, or a failure without a kind.
    """
    now = ctx.clock()
    said = _comparable(result)
    with ctx.db.write() as session:
        try:
            lease, trial, study = held(session, lease_id, team_id)
        except LeaseLost:
            lease = Leases(session).get(lease_id)
            if lease.state in (LeaseState.FINISHED, LeaseState.RELEASED) and lease.result == said:
                return Trials(session).get(lease.trial_id, team_id).state
            raise
        _check(study, trial, result)
        if trial.phase is TrialPhase.MEASUREMENT and result.state == "completed":
            ranking = measured_ranking(study, trial, result.predictions)
            Studies(session).add_predictions(study.id, {MEASURED: ranking}, study.spec.compare.predictors)
        trial = reclaim(session, trial, now)
        released = result.state == "released"
        Leases(session).end(lease.id, LeaseState.RELEASED if released else LeaseState.FINISHED, now, said)
        Leases(session).set_idle(lease.runner, now)
        account(session, study, lease, now, _artifact_bytes(result))
        state = _apply(session, study, trial, result, now)
        if result.failure is not None and result.failure.kind in _BLAMED:
            blame(session, study, lease, now, result.failure.message)
        elif result.state in ("completed", "pruned"):
            clear(session, lease)
        if result.failure is not None:
            # A rejected model or dataset has ended the study.
            study = Studies(session).get(study.id, lock=True)
        advance(session, study, now)
        return state


def account(session: Session, study: Study, lease: Lease, now: datetime, storage_bytes: int = 0) -> None:
    """Add an ended attempt's GPU time and stored bytes to its study."""
    seconds = max(0.0, (now - lease.acquired_at).total_seconds()) * study.spec.resources.shape.gpus
    if seconds or storage_bytes:
        Studies(session).spend(study.id, seconds, storage_bytes)


def _artifact_bytes(result: Result) -> int:
    size = result.resources.get("artifact_bytes", 0)
    return size if isinstance(size, int) and result.artifact is not None and size > 0 else 0


def _comparable(result: Result) -> dict[str, Any]:
    said = asdict(result)
    # Resources are measurements, so they may differ when a result is repeated.
    said.pop("resources")
    said.pop("scores")
    said.pop("predictions")
    return said


def _check(study: Study, trial: Trial, result: Result) -> None:
    measurement = trial.phase is TrialPhase.MEASUREMENT
    for metric in () if measurement else (o.metric for o in study.spec.all_objectives if o.metric not in COMPUTED):
        if result.state == "completed" and not math.isfinite(result.metrics.get(metric, math.nan)):
            raise InvalidRequest(
                f"a completed trial reports the study's objective {metric!r}",
                [Fault("#/metrics", f"{metric!r} is missing; got: {', '.join(result.metrics) or 'nothing'}")],
            )
    if result.state in ("failed", "infeasible") and result.failure is None:
        raise InvalidRequest(f"a {result.state} trial says why", [Fault("#/failure", "give kind and message")])


def _apply(session: Session, study: Study, trial: Trial, result: Result, now: datetime) -> TrialState:
    trials = Trials(session)
    computed = {PARAMETERS: float(trial.parameters)} if PARAMETERS in [o.metric for o in study.spec.objectives] else {}
    values: dict[str, Any] = {
        "metrics": {**result.metrics, **computed},
        "resources": result.resources,
        "scores": result.scores,
    }
    if result.artifact is not None:
        values["artifact"] = result.artifact
        values["artifact_bytes"] = _artifact_bytes(result)
    over = study.state in STUDY_ENDED
    paused = result.state == "cancelled" and trial.stop_reason == StopReason.PAUSED
    if (result.state == "released" or paused) and not over and trial.stop_reason != StopReason.CANCELLED:
        trials.set_state(trial, TrialState.QUEUED, now, EventKind.TRIAL_QUEUED, lease_id=None, stop_reason=None)
        return TrialState.QUEUED
    if result.state == "cancelled" and trial.stop_reason == StopReason.TIMED_OUT and not over:
        return time_out(session, study, trial, now, **values)
    if result.state in ("released", "cancelled"):
        trials.set_state(trial, TrialState.CANCELLED, now, **values)
        return TrialState.CANCELLED
    if result.failure is not None and result.state in ("failed", "infeasible"):
        return _apply_failure(session, study, trial, result.failure, values, now)
    state = TrialState(result.state)
    trials.set_state(trial, state, now, **values)
    return state


def time_out(session: Session, study: Study, trial: Trial, now: datetime, **values: Any) -> TrialState:
    """A trial that exceeded its time limit would exceed it again, so it is infeasible."""
    minutes = study.spec.limits.trial_minutes
    message = f"the trial ran for longer than limits.trial_minutes ({minutes:g}) allows"
    values |= {"failure_kind": FailureKind.TIMED_OUT, "failure_message": message}
    Trials(session).set_state(trial, TrialState.INFEASIBLE, now, **values)
    return TrialState.INFEASIBLE


def _apply_failure(
    session: Session, study: Study, trial: Trial, failure: Failure, values: dict[str, Any], now: datetime
) -> TrialState:
    """Apply the rule of the failure's kind; docs/concepts.md lists them."""
    trials = Trials(session)
    values |= {"failure_kind": failure.kind, "failure_message": failure.message}
    over = study.state in STUDY_ENDED
    if failure.kind in (FailureKind.OUT_OF_MEMORY, FailureKind.DIVERGED):
        state = TrialState.INFEASIBLE
    elif failure.kind in (FailureKind.PREEMPTED, FailureKind.LOST) and not over:
        return _requeue_or_lose(session, trial, now, failure.message)
    elif failure.kind in _RETRIED and trial.errors < study.spec.search.retries and not over:
        values |= {"errors": trial.errors + 1, "lease_id": None}
        trials.set_state(trial, TrialState.QUEUED, now, EventKind.TRIAL_QUEUED, **values)
        return TrialState.QUEUED
    else:
        state = TrialState.CANCELLED if over else TrialState.FAILED
    trials.set_state(trial, state, now, **values)
    if failure.kind is FailureKind.REJECTED and not over:
        reason = f"trial {trial.number} cannot run: {failure.message}"
        Studies(session).set_state(Studies(session).get(study.id, lock=True), StudyState.FAILED, now, reason)
        trials.cancel_queued(study.id, now)
    return state


def _requeue_or_lose(session: Session, trial: Trial, now: datetime, message: str) -> TrialState:
    losses = trial.losses + 1
    if losses >= MOST_LOSSES:
        Trials(session).set_state(
            trial,
            TrialState.FAILED,
            now,
            losses=losses,
            failure_kind=FailureKind.LOST,
            failure_message=f"its runner was lost {losses} times without a new checkpoint: {message}",
        )
        return TrialState.FAILED
    Trials(session).set_state(trial, TrialState.QUEUED, now, EventKind.TRIAL_QUEUED, losses=losses)
    return TrialState.QUEUED


def stall(session: Session, lease_id: str, now: datetime) -> None:
    """End an attempt that makes no progress although its runner is alive. Another attempt uses the user's retries.

    Its runner gets 409 from here on and stops.
    """
    if (cut := _cut_off(session, lease_id, now)) is None:
        return
    trial, study = cut
    message = f"no progress for limits.stall_minutes ({study.spec.limits.stall_minutes:g}) though its runner lives"
    _apply_failure(session, study, trial, Failure(FailureKind.STALLED, message), {"lease_id": None}, now)
    advance(session, Studies(session).get(study.id, lock=True), now)


def overrun(session: Session, lease_id: str, now: datetime) -> None:
    """End an attempt that exceeded its time and did not stop when told."""
    if (cut := _cut_off(session, lease_id, now)) is None:
        return
    trial, study = cut
    time_out(session, study, trial, now, lease_id=None)
    advance(session, Studies(session).get(study.id, lock=True), now)


def _cut_off(session: Session, lease_id: str, now: datetime) -> tuple[Trial, Study] | None:
    """Revoke the lease of a running trial; ``None`` if it holds none."""
    try:
        lease, trial, study = held(session, lease_id, None)
    except (LeaseLost, NotFound):
        return None
    if lease.state is not LeaseState.HELD or trial.state is not TrialState.RUNNING:
        return None
    Leases(session).end(lease.id, LeaseState.EXPIRED, now)
    account(session, study, lease, now)
    return trial, study


def requeue_lost(session: Session, lease_id: str, now: datetime) -> None:
    """Queue the trial of an expired lease again. Its runner may continue until the trial is leased again."""
    try:
        lease, trial, study = held(session, lease_id, None)
    except (LeaseLost, NotFound):
        # The trial has another lease or has ended, or its study is deleted.
        if Leases(session).get(lease_id).state is LeaseState.HELD:
            Leases(session).end(lease_id, LeaseState.EXPIRED, now)
        return
    if lease.state is not LeaseState.HELD or lease.expires_at >= now:
        return
    Leases(session).end(lease.id, LeaseState.EXPIRED, now)
    if trial.state is not TrialState.RUNNING:
        return
    account(session, study, lease, now)
    if study.state in STUDY_ENDED or trial.stop_reason == StopReason.CANCELLED:
        Trials(session).set_state(trial, TrialState.CANCELLED, now)
    else:
        _requeue_or_lose(session, trial, now, f"nothing was heard of {lease.runner}")
        blame(session, study, lease, now, f"nothing was heard of {lease.runner}")
    advance(session, Studies(session).get(study.id, lock=True), now)
