"""End an attempt: with a result, with a failure of some kind, or by losing its runner."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy.orm import Session

from ..db.leases import Leases
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.records import Failure, Study, Trial
from ..domain.states import STUDY_ENDED, FailureKind, LeaseState, StudyState, TrialState
from ..errors import Fault, InvalidRequest, LeaseLost
from .advancing import advance
from .context import Context
from .fencing import held, reclaim

# Losses of a worker or node in a row, without a new checkpoint between them, that end a trial.
MOST_LOSSES = 5

ResultState = Literal["completed", "pruned", "infeasible", "failed", "cancelled", "released"]


@dataclass(frozen=True, slots=True)
class Result:
    """What a runner says of an attempt that is over."""

    state: ResultState
    metrics: dict[str, float] = field(default_factory=dict)
    artifact: str | None = None
    resources: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    scores: list[float] | None = None


def finish(ctx: Context, lease_id: str, team_id: str | None, result: Result) -> TrialState:
    """Record the result of an attempt and move its study on. The same result repeated changes nothing.

    Raises:
        NotFound: there was never such a lease in this team.
        LeaseLost: the lease is no longer held; nothing was changed.
        InvalidRequest: a completed trial without its objective, or a failure without a kind.
    """
    now = ctx.clock()
    said = _comparable(result)
    with ctx.db.write() as session:
        lease = Leases(session).get(lease_id)
        if lease.state in (LeaseState.FINISHED, LeaseState.RELEASED) and lease.result == said:
            return Trials(session).get(lease.trial_id, team_id).state
        lease, trial = held(session, lease_id, team_id)
        study = Studies(session).get(trial.study_id)
        _check(study, trial, result)
        trial = reclaim(session, trial, now)
        released = result.state == "released"
        Leases(session).end(lease.id, LeaseState.RELEASED if released else LeaseState.FINISHED, now, said)
        Leases(session).see_runner(lease.runner, now, lease_id=None)
        state = _apply(session, study, trial, result, now)
        Studies(session).touch(study.id)
        advance(session, Studies(session).get(study.id, lock=True), now)
        return state


def _comparable(result: Result) -> dict[str, Any]:
    said = asdict(result)
    # Resources are measurements of the attempt, not part of what it came to.
    said.pop("resources")
    said.pop("scores")
    return said


def _check(study: Study, trial: Trial, result: Result) -> None:
    metric = study.spec.objective.metric
    if result.state == "completed":
        value = result.metrics.get(metric)
        if value is None or not math.isfinite(value):
            raise InvalidRequest(
                f"a completed trial reports the study's objective {metric!r}",
                [Fault("#/metrics", f"{metric!r} is missing; got: {', '.join(result.metrics) or 'nothing'}")],
            )
    if result.state in ("failed", "infeasible") and result.failure is None:
        raise InvalidRequest(f"a {result.state} trial says why", [Fault("#/failure", "give kind and message")])


def _apply(session: Session, study: Study, trial: Trial, result: Result, now: datetime) -> TrialState:
    trials = Trials(session)
    values: dict[str, Any] = {"metrics": result.metrics, "resources": result.resources, "scores": result.scores}
    if result.artifact is not None:
        values["artifact"] = result.artifact
    over = study.state in STUDY_ENDED
    if result.state == "released" and not over:
        trials.set_state(trial, TrialState.QUEUED, now, lease_id=None)
        return TrialState.QUEUED
    if result.state in ("released", "cancelled"):
        trials.set_state(trial, TrialState.CANCELLED, now, **values)
        return TrialState.CANCELLED
    if result.failure is not None and result.state in ("failed", "infeasible"):
        return _apply_failure(session, study, trial, result.failure, values, now)
    state = TrialState(result.state)
    trials.set_state(trial, state, now, **values)
    return state


def _apply_failure(
    session: Session, study: Study, trial: Trial, failure: Failure, values: dict[str, Any], now: datetime
) -> TrialState:
    """Each kind of failure has its own budget: see DESIGN.md, section 4."""
    trials = Trials(session)
    values |= {"failure_kind": failure.kind, "failure_message": failure.message}
    over = study.state in STUDY_ENDED
    if failure.kind in (FailureKind.OUT_OF_MEMORY, FailureKind.DIVERGED):
        state = TrialState.INFEASIBLE
    elif failure.kind in (FailureKind.PREEMPTED, FailureKind.LOST) and not over:
        return _requeue_or_lose(session, trial, now, failure.message)
    elif failure.kind is FailureKind.ERROR and trial.errors < study.spec.search.retries and not over:
        values["errors"] = trial.errors + 1
        state = TrialState.QUEUED
        values["lease_id"] = None
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
    Trials(session).set_state(trial, TrialState.QUEUED, now, losses=losses)
    return TrialState.QUEUED


def requeue_lost(session: Session, lease_id: str, now: datetime) -> None:
    """An expired lease gives its trial back to the queue; its runner may still come back until another takes it."""
    try:
        lease, trial = held(session, lease_id, None)
    except LeaseLost:
        return
    if lease.state is not LeaseState.HELD or lease.expires_at >= now:
        return
    Leases(session).end(lease.id, LeaseState.EXPIRED, now)
    if trial.state is not TrialState.RUNNING:
        return
    study = Studies(session).get(trial.study_id, lock=True)
    if study.state in STUDY_ENDED:
        Trials(session).set_state(trial, TrialState.CANCELLED, now)
    else:
        _requeue_or_lose(session, trial, now, f"nothing was heard of {lease.runner}")
    Studies(session).touch(study.id)
    advance(session, Studies(session).get(study.id, lock=True), now)
