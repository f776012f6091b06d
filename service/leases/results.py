"""End an attempt: by a result, by a failure, or because its runner was lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from ..context.context import Context
from ..db.leases import Leases
from ..db.predictions import Predictions
from ..db.retries import retried
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.metrics import COMPUTED, PARAMETERS
from ..domain.records import Failure, Lease, StoredPrediction, Study, Trial
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
from ..studies.start import start_of, start_trials
from .fences import hear_of_runner, held, reclaim
from .hosts import blame, clear
from .outcomes import Outcome, ResultState, of_failure, of_loss, of_result, of_timeout
from .promotions import promote

# Failures that may be the host's fault.
_EVENTS = {TrialState.QUEUED: EventKind.TRIAL_QUEUED, TrialState.WAITING: EventKind.TRIAL_WAITING}
_BLAMED = frozenset({FailureKind.ERROR, FailureKind.PREEMPTED, FailureKind.LOST})


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


def finish(ctx: Context, lease_id: str, team_id: str | None, result: Result) -> TrialState:
    """Record an attempt's result and advance its study. Repeating the same result changes nothing.

    Raises:
        NotFound: there was never such a lease in this team.
        LeaseLost: the lease is no longer held; nothing was changed.
        InvalidRequest: a completed trial without its objective, or a failure without a kind.
    """
    state, study_id = _record(ctx, lease_id, team_id, result)
    if state is TrialState.WAITING:
        # Results that came while its runner was stopping may have put it among the best.
        promote(ctx, study_id)
    return state


@retried
def _record(ctx: Context, lease_id: str, team_id: str | None, result: Result) -> tuple[TrialState, str]:
    now = ctx.clock()
    said = _comparable(result)
    with ctx.db.write() as session:
        try:
            attempt = held(session, lease_id, team_id)
        except LeaseLost:
            lease = Leases(session).get(lease_id)
            if lease.state in (LeaseState.FINISHED, LeaseState.RELEASED) and lease.result == said:
                repeated = Trials(session).get(lease.trial_id, team_id)
                return repeated.state, repeated.study_id
            raise
        lease, trial, study = attempt.lease, attempt.trial, attempt.study
        _check(study, trial, result)
        if trial.phase is TrialPhase.MEASUREMENT and result.state == "completed":
            ranking = measured_ranking(study, trial, result.predictions)
            Predictions(session).add(study.id, {MEASURED: ranking}, study.spec.compare.predictors)
            _start_measured(session, study, ranking, now)
        trial = reclaim(session, attempt, now)
        released = result.state == "released"
        Leases(session).end(lease.id, LeaseState.RELEASED if released else LeaseState.FINISHED, now, said)
        hear_of_runner(session, lease, now, ctx.lease_time)
        account(session, study, lease, now, _artifact_bytes(result))
        outcome = of_result(study, trial, result.state, result.failure, _values(study, trial, result))
        study = _settle(session, study, trial, outcome, now)
        if result.failure is not None and result.failure.kind in _BLAMED:
            blame(session, study, lease, now, result.failure.message)
        elif result.state in ("completed", "pruned"):
            clear(session, attempt)
        advance(session, study, now)
        return outcome.state, study.id


def _start_measured(session: Session, study: Study, ranking: Sequence[StoredPrediction], now: datetime) -> None:
    """Queue the choice of the ``measured`` predictor, if the search starts with it and has not tried it already."""
    trials = Trials(session)
    if MEASURED not in start_of(study.spec):
        return
    known = trials.of_study(study.id, TrialPhase.SEARCH)
    first = start_trials(study.spec, study.plan, {MEASURED: ranking}, 0, most=len(start_of(study.spec)))
    tried = [t.params for t in known]
    mine = [t for t in first if t.candidate == MEASURED and t.params not in tried][: study.planned - len(known)]
    number = trials.next_number(study.id)
    trials.add(study.id, [replace(t, number=number + k) for k, t in enumerate(mine)], now)


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
                f"a completed trial must report the study's objective {metric!r}",
                [Fault("#/metrics", f"{metric!r} is missing; got: {', '.join(result.metrics) or 'nothing'}")],
            )
    if result.state in ("failed", "infeasible") and result.failure is None:
        raise InvalidRequest(f"a {result.state} trial needs a reason", [Fault("#/failure", "give kind and message")])


def _values(study: Study, trial: Trial, result: Result) -> dict[str, Any]:
    """What a result says of its trial."""
    computed = {PARAMETERS: float(trial.parameters)} if PARAMETERS in [o.metric for o in study.spec.objectives] else {}
    values: dict[str, Any] = {
        "metrics": {**result.metrics, **computed},
        "resources": result.resources,
        "scores": result.scores,
    }
    if result.artifact is not None:
        values |= {"artifact": result.artifact, "artifact_bytes": _artifact_bytes(result)}
    return values


def _settle(session: Session, study: Study, trial: Trial, outcome: Outcome, now: datetime) -> Study:
    """Write an outcome; returns the study as it is then."""
    trials = Trials(session)
    kind = _EVENTS.get(outcome.state, EventKind.TRIAL_ENDED)
    trials.set_state(trial, outcome.state, now, kind, **outcome.values)
    if outcome.study_failure is not None:
        study = Studies(session).set_state(study, StudyState.FAILED, now, outcome.study_failure)
        trials.cancel_queued(study.id, now)
    return study


def stall(session: Session, lease_id: str, now: datetime) -> None:
    """End an attempt that makes no progress although its runner is alive. Another attempt uses the user's retries.

    Its runner gets 409 from here on and stops.
    """
    if (cut := _cut_off(session, lease_id, now)) is None:
        return
    trial, study = cut
    message = f"no progress for limits.stall_minutes ({study.spec.limits.stall_minutes:g}) though its runner lives"
    outcome = of_failure(study, trial, Failure(FailureKind.STALLED, message), {"lease_id": None})
    advance(session, _settle(session, study, trial, outcome, now), now)


def overrun(session: Session, lease_id: str, now: datetime) -> None:
    """End an attempt that exceeded its time and did not stop when told."""
    if (cut := _cut_off(session, lease_id, now)) is None:
        return
    trial, study = cut
    advance(session, _settle(session, study, trial, of_timeout(study, {"lease_id": None}), now), now)


def _cut_off(session: Session, lease_id: str, now: datetime) -> tuple[Trial, Study] | None:
    """Revoke the lease of a running trial; ``None`` if it holds none."""
    try:
        attempt = held(session, lease_id, None)
    except (LeaseLost, NotFound):
        return None
    lease, trial, study = attempt.lease, attempt.trial, attempt.study
    if lease.state is not LeaseState.HELD or trial.state is not TrialState.RUNNING:
        return None
    Leases(session).end(lease.id, LeaseState.EXPIRED, now)
    account(session, study, lease, now)
    return trial, study


def requeue_lost(session: Session, lease_id: str, now: datetime) -> None:
    """Queue the trial of an expired lease again. Its runner may continue until the trial is leased again."""
    try:
        attempt = held(session, lease_id, None)
    except (LeaseLost, NotFound):
        # The trial has another lease or has ended, or its study is deleted.
        if Leases(session).get(lease_id).state is LeaseState.HELD:
            Leases(session).end(lease_id, LeaseState.EXPIRED, now)
        return
    lease, trial, study = attempt.lease, attempt.trial, attempt.study
    if lease.state is not LeaseState.HELD or lease.expires_at >= now:
        return
    Leases(session).end(lease.id, LeaseState.EXPIRED, now)
    if trial.state is not TrialState.RUNNING:
        return
    account(session, study, lease, now)
    if study.state in STUDY_ENDED or trial.stop_reason == StopReason.CANCELLED:
        outcome = Outcome(TrialState.CANCELLED)
    else:
        outcome = of_loss(trial, f"nothing was heard of {lease.runner}")
        blame(session, study, lease, now, f"nothing was heard of {lease.runner}")
    advance(session, _settle(session, study, trial, outcome, now), now)
