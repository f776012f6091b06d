"""Read a study's Pareto front, and why it waits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from ..context.context import Context
from ..db.leases import Leases
from ..db.studies import Studies
from ..db.teams import Teams
from ..db.trials import Trials
from ..domain.pareto import pareto_front
from ..domain.records import Study, Trial, TrialCounts
from ..domain.states import STUDY_ENDED, StudyState, TrialPhase, TrialState
from ..domain.study_spec import Direction, Objective
from ..studies.progress import search_trials
from ..tenancy.quotas import trial_fault

RUNNER_SEEN = timedelta(minutes=2)


def front(ctx: Context, study_id: str, team_id: str | None) -> tuple[list[Objective], list[Trial]]:
    """The objectives, and the Pareto front of the finished search trials, by number.

    Raises:
        NotFound: there is no such study in this team.
    """
    with ctx.db.read() as session:
        study = Studies(session).get(study_id, team_id)
        trials = [t for t in Trials(session).of_study(study_id, TrialPhase.SEARCH) if t.start_from is None]
    return study.spec.all_objectives, front_of(study.spec.all_objectives, trials)


def front_of(objectives: Sequence[Objective], trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto front of finished trials, in their order."""
    done = [t for t in trials if t.state is TrialState.COMPLETED and all(o.metric in t.metrics for o in objectives)]
    signs = [-1.0 if o.direction is Direction.MAXIMIZE else 1.0 for o in objectives]
    points = [[s * t.metrics[o.metric] for s, o in zip(signs, objectives, strict=True)] for t in done]
    return [done[k] for k in pareto_front(points)]


def waiting_for(ctx: Context, study: Study, counts: TrialCounts) -> str | None:
    """Why a study with work has no running trial; ``None`` if it has one or has no work."""
    if study.state is StudyState.PAUSED or study.state in STUDY_ENDED:
        return None
    if any(state is TrialState.RUNNING for _, state in counts):
        return None
    queued = any(state is TrialState.QUEUED for _, state in counts)
    if not queued and search_trials(counts) >= study.planned:
        return None
    needs = study.spec.resources.shape
    with ctx.db.read() as session:
        team = Teams(session).get(study.team_id)
        fault = trial_fault(team, Teams(session).usage([team.id])[team.id], needs.gpus)
        runners = Leases(session).runners(None)
    if fault is not None:
        return f"its team's quota: {fault}"
    since = ctx.clock() - RUNNER_SEEN
    alive = [r for r in runners if r.last_seen_at >= since and r.team_id in (None, study.team_id)]
    if not alive:
        return "a runner: none has asked for work within the last two minutes (see: cdka work)"
    if not any(r.shape.holds(needs) for r in alive):
        most = max((r.shape for r in alive), key=lambda shape: (shape.gpus, shape.cpus))
        return f"a runner with {needs}; the largest of {len(alive)} that asked lately has {most}"
    return "a runner: those that could take its trials are busy"
