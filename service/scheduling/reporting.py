"""Take a running trial's reports, renew its lease and tell its runner to go on or to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ..db.leases import Leases
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.records import MetricPoint, Trial
from ..domain.states import StudyState, TrialPhase
from ..search.policy import Problem
from .context import Context
from .fencing import held, reclaim

PRUNED = "pruned"
CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Directive:
    """What the runner is to do: go on while ``reason`` is None, else stop for it."""

    reason: str | None
    expires_at: datetime


def report(
    ctx: Context,
    lease_id: str,
    team_id: str | None,
    reports: Sequence[tuple[int, dict[str, float]]],
    checkpoint: str | None,
) -> Directive:
    """Record reports (none: a heartbeat), renew the lease, decide.

    Raises:
        NotFound: there was never such a lease in this team.
        LeaseLost: the lease is no longer held; nothing was changed.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        lease, trial = held(session, lease_id, team_id)
        trial = reclaim(session, trial, now)
        expires_at = now + ctx.lease_time
        Leases(session).renew(lease.id, expires_at)
        Leases(session).see_runner(lease.runner, now)
        study = Studies(session).get(trial.study_id)
        points = [MetricPoint(step, name, value, now) for step, values in reports for name, value in values.items()]
        added = Trials(session).add_metrics(trial.id, points)
        changes: dict[str, Any] = {}
        if checkpoint is not None and checkpoint != trial.checkpoint:
            # A new checkpoint is progress: losses count only between checkpoints.
            changes = {"checkpoint": checkpoint, "losses": 0}
        if study.state is StudyState.CANCELLED and trial.stop_reason is None:
            changes["stop_reason"] = CANCELLED
        if changes:
            Trials(session).write(trial.id, **changes)
        reason = changes.get("stop_reason", trial.stop_reason)
        evaluations = added.count(study.spec.objective.metric)
        if added:
            Studies(session).touch(study.id)
    if reason is None and evaluations and trial.phase is TrialPhase.SEARCH and study.spec.search.pruner != "none":
        reason = _judge(ctx, trial, evaluations)
    return Directive(reason, expires_at)


def _judge(ctx: Context, trial: Trial, evaluations: int) -> str | None:
    """Ask the stop rule about each of the newest evaluations in turn, on the history as it now stands.

    A stop is remembered, so that a repeated report says it again.
    """
    with ctx.db.read() as session:
        study = Studies(session).get(trial.study_id)
        history = Trials(session).history(study.id, study.spec.objective.metric)
    current = next(t for t in history if t.id == trial.id)
    problem = Problem(study.id, study.spec, study.plan)
    last = len(current.curve)
    for evaluation in range(last - evaluations + 1, last + 1):
        seen = replace(current, curve={k: v for k, v in current.curve.items() if k <= evaluation})
        if ctx.stop_rule.should_stop(problem, history, seen):
            with ctx.db.write() as session:
                Trials(session).write(trial.id, stop_reason=PRUNED)
            return PRUNED
    return None
