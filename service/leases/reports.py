"""Record a running trial's reports, renew its lease and tell its runner to continue or stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ..context.context import Context
from ..db.leases import Leases
from ..db.metrics import Metrics
from ..db.retries import retried
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.records import Lease, MetricPoint, Study, Trial
from ..domain.states import EventKind, StopReason, TrialPhase
from ..errors import InvalidRequest
from ..search.policy import Problem, Verdict
from .fences import hear_of_runner, held, reclaim
from .promotions import promote

# Values that a trial may have in all. They are counted where one request has more than ``_CHECKED``.
MOST_VALUES_OF_TRIAL = 500_000
_CHECKED = 100


@dataclass(frozen=True, slots=True)
class Directive:
    """The answer to a runner: continue if ``reason`` is ``None``, else stop."""

    reason: str | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class _Taken:
    """A recorded report: the trial with its evaluations, and how many of them are new."""

    trial: Trial
    study: Study
    reason: str | None
    expires_at: datetime
    new_evaluations: int


def report(
    ctx: Context,
    lease_id: str,
    team_id: str | None,
    reports: Sequence[tuple[int, dict[str, float]]],
    checkpoint: str | None,
    total_steps: int | None = None,
) -> Directive:
    """Record reports (none: a heartbeat), renew the lease, decide.

    A step without metrics counts as progress, which distinguishes a slow trial from a hung one. ``total_steps`` is the
    trial's last step, if the runner knows it: an evaluation there is not judged, because nothing is left to stop.

    Raises:
        NotFound: there was never such a lease in this team.
        LeaseLost: the lease is no longer held; nothing was changed.
    """
    taken = _take(ctx, lease_id, team_id, reports, checkpoint, total_steps)
    reason = taken.reason
    judged = taken.trial.phase is TrialPhase.SEARCH and taken.study.spec.search.pruner != "none"
    if reason is None and taken.new_evaluations and judged:
        reason = _judge(ctx, taken, _may_be_judged(taken, reports, total_steps))
    return Directive(reason, taken.expires_at)


@retried
def _take(
    ctx: Context,
    lease_id: str,
    team_id: str | None,
    reports: Sequence[tuple[int, dict[str, float]]],
    checkpoint: str | None,
    total_steps: int | None,
) -> _Taken:
    now = ctx.clock()
    with ctx.db.write() as session:
        attempt = held(session, lease_id, team_id)
        lease, study = attempt.lease, attempt.study
        trial = reclaim(session, attempt, now)
        expires_at = now + ctx.lease_time
        points = [MetricPoint(step, name, value, now) for step, values in reports for name, value in values.items()]
        if len(points) > _CHECKED and Metrics(session).count(trial.id) + len(points) > MOST_VALUES_OF_TRIAL:
            raise InvalidRequest(
                f"trial {trial.number} would have more than {MOST_VALUES_OF_TRIAL:,} values; evaluate less often "
                "(training.eval_steps), or report fewer metrics"
            )
        added = Metrics(session).add(trial.id, points)
        changes: dict[str, Any] = {}
        if checkpoint is not None and checkpoint != trial.checkpoint:
            # A new checkpoint is progress: losses count only between checkpoints.
            changes = {"checkpoint": checkpoint, "losses": 0}
        step = max((step for step, _ in reports), default=-1)
        progress = (max(step, lease.progress_step), now) if added or changes or step > lease.progress_step else None
        Leases(session).renew(lease.id, expires_at, progress, total_steps)
        hear_of_runner(session, lease, now, ctx.lease_time)
        reason = trial.stop_reason
        if reason is None and _is_over_time(study, lease, now):
            reason = changes["stop_reason"] = StopReason.TIMED_OUT
        values = _evaluations(study, points, added)
        if added:
            data = {"trial_id": trial.id, "number": trial.number, "phase": trial.phase, "step": step}
            latest = {p.name: p.value for p in sorted(points, key=lambda p: p.step)}
            version = Studies(session).touch(study.id, EventKind.TRIAL_REPORTED, now, {**data, "metrics": latest})
            changes["version"] = version
            if values:
                changes["curve"] = [*trial.curve, *values]
        if changes:
            Trials(session).write(trial.id, **changes)
        trial = replace(trial, curve=changes.get("curve", trial.curve))
    return _Taken(trial, study, reason, expires_at, len(values))


def _evaluations(study: Study, points: Sequence[MetricPoint], added: Sequence[tuple[str, int]]) -> list[float]:
    """The new values of the pruning metric, in the order of their steps."""
    new = set(added)
    mine = {p.step: p.value for p in points if p.name == study.spec.pruning_metric and (p.name, p.step) in new}
    return [mine[step] for step in sorted(mine)]


def _is_over_time(study: Study, lease: Lease, now: datetime) -> bool:
    minutes = study.spec.limits.trial_minutes
    return minutes is not None and (now - lease.acquired_at).total_seconds() > minutes * 60


def _may_be_judged(taken: _Taken, reports: Sequence[tuple[int, dict[str, float]]], total_steps: int | None) -> int:
    """How many evaluations of the trial are not its last one."""
    training, evaluations = taken.study.spec.settled.for_trial(taken.trial.params).training, len(taken.trial.curve)
    metric = taken.study.spec.pruning_metric
    if total_steps is not None and any(step >= total_steps and metric in values for step, values in reports):
        return evaluations - 1
    # Without that, the number of evaluations is known where each epoch has one.
    return min(evaluations, training.epochs - 1) if training.eval_steps is None else evaluations


def _judge(ctx: Context, taken: _Taken, judged: int) -> str | None:
    """Judge each new evaluation in order, up to the trial's evaluation ``judged``, on the current history.

    A stop is stored, so that a repeated report gets the same answer.
    """
    snapshot = ctx.histories.snapshot(ctx.db, taken.study.id)
    problem = Problem(snapshot.study.id, snapshot.study.spec, snapshot.study.plan)
    first = len(taken.trial.curve) - taken.new_evaluations + 1
    reason = None
    for evaluation in range(first, judged + 1):
        verdict = ctx.stop_rule.judge(problem, snapshot.history, taken.trial.number, evaluation)
        if verdict is not Verdict.CONTINUE:
            reason = StopReason.WAITING if verdict is Verdict.WAIT else StopReason.PRUNED
            _stop(ctx, taken.study.id, taken.trial.id, reason)
            break
    # The new values may have put others among the best.
    promote(ctx, taken.study.id, snapshot)
    return reason


@retried
def _stop(ctx: Context, study_id: str, trial_id: str, reason: StopReason) -> None:
    now = ctx.clock()
    with ctx.db.write() as session:
        Studies(session).get(study_id, lock=True)
        trial = Trials(session).get(trial_id, lock=True)
        if trial.stop_reason is None:
            Trials(session).stop(trial, reason, now)
