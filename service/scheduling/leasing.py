"""Hand out trials: exactly as many as were asked for, however many runners race for them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..db.leases import Leases
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.records import Lease, NewTrial, Study, Trial
from ..domain.states import LeaseState, StudyPhase, StudyState, TrialPhase, TrialState
from ..search.policy import Problem
from .context import Context
from .results import requeue_lost

# Asks that race for the same number: one wins, the others ask again on the new history.
ASK_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease with the trial and the study it is for."""

    lease: Lease
    trial: Trial
    study: Study


@dataclass(frozen=True, slots=True)
class Runner:
    """Who asks for work, for which team (``None``: all), what it offers and which base models it holds."""

    name: str
    cpus: float
    gpus: float
    team_id: str | None = None
    warm: tuple[str, ...] = ()


def acquire(ctx: Context, runner: Runner, wanted: int) -> list[Grant]:
    """Lease up to ``wanted`` trials to a runner; an empty list when there is nothing for it to do."""
    with ctx.db.write() as session:
        Leases(session).see_runner(
            runner.name, ctx.clock(), cpus=runner.cpus, gpus=runner.gpus, warm=list(runner.warm), lease_id=None
        )
    expire_leases(ctx)
    grants: list[Grant] = []
    while len(grants) < wanted and (grant := _acquire_one(ctx, runner)) is not None:
        grants.append(grant)
    return grants


def expire_leases(ctx: Context) -> None:
    """Put the trials of expired leases back in the queue; each stays its runner's until another takes it."""
    now = ctx.clock()
    if now < ctx.expiry_from:
        return
    with ctx.db.read() as session:
        expired = [lease.id for lease in Leases(session).expired(now)]
    for lease_id in expired:
        with ctx.db.write() as session:
            requeue_lost(session, lease_id, now)


def _acquire_one(ctx: Context, runner: Runner) -> Grant | None:
    for study in _in_order(ctx, runner):
        grant = _from_study(ctx, study.id, runner)
        if grant is not None:
            return grant
    return None


def _in_order(ctx: Context, runner: Runner) -> list[Study]:
    """Studies that this runner could serve: those that nobody serves first, then those it is warm for, then by age."""
    with ctx.db.read() as session:
        studies = [s for s in Studies(session).with_work(runner.team_id) if fits(s, runner.cpus, runner.gpus)]
        counts = Trials(session).counts([s.id for s in studies])

    def order(study: Study) -> tuple[bool, bool, str]:
        return _running(counts[study.id]) > 0, study.spec.model_key not in runner.warm, study.id

    return sorted(studies, key=order)


def fits(study: Study, cpus: float, gpus: float) -> bool:
    """Whether a runner's resources are enough for one trial of the study."""
    return study.spec.resources.cpus <= cpus and study.spec.resources.gpus <= gpus


def _running(counts: dict[tuple[TrialPhase, TrialState], int]) -> int:
    return sum(n for (_, state), n in counts.items() if state is TrialState.RUNNING)


def search_trials(counts: dict[tuple[TrialPhase, TrialState], int]) -> int:
    """Search trials that exist, in whatever state."""
    return sum(n for (phase, _), n in counts.items() if phase is TrialPhase.SEARCH)


def _from_study(ctx: Context, study_id: str, runner: Runner) -> Grant | None:
    for _ in range(ASK_ATTEMPTS):
        with ctx.db.write() as session:
            study = Studies(session).get(study_id, lock=True)
            if not _has_room(session, study):
                return None
            queued = Trials(session).first_queued(study_id)
            if queued is not None:
                return _grant(ctx, session, study, queued, runner)
            if not _may_ask(session, study):
                return None
        try:
            grant = _ask(ctx, study_id, runner)
        except IntegrityError:
            continue
        if grant is not None:
            return grant
    return None


def _has_room(session: Session, study: Study) -> bool:
    if study.state not in (StudyState.QUEUED, StudyState.RUNNING):
        return False
    return _running(Trials(session).counts([study.id])[study.id]) < study.spec.search.concurrency


def _may_ask(session: Session, study: Study) -> bool:
    counts = Trials(session).counts([study.id])[study.id]
    return study.phase is StudyPhase.SEARCH and search_trials(counts) < study.spec.search.trials


def _ask(ctx: Context, study_id: str, runner: Runner) -> Grant | None:
    """Ask the policy outside of any write, then record its answer, unless another ask came first."""
    with ctx.db.read() as session:
        study = Studies(session).get(study_id)
        history = Trials(session).history(study_id, study.spec.objective.metric)
        number = Trials(session).next_number(study_id)
    proposal = ctx.policy.propose(Problem(study.id, study.spec, study.plan), history, number)
    structure = study.plan.structure(proposal.params["r1"], proposal.params["r2"])
    assert structure is not None, "the policy proposed a structure that the plan does not admit"
    with ctx.db.write() as session:
        locked = Studies(session).get(study_id, lock=True)
        trials = Trials(session)
        if not _has_room(session, locked) or not _may_ask(session, locked) or trials.next_number(study_id) != number:
            return None
        new = NewTrial(
            number=number,
            phase=TrialPhase.SEARCH,
            method="cdka",
            params=proposal.params,
            point=proposal.point,
            parameters=structure.unit_parameters * int(proposal.params["r"]),
            seed=study.spec.search.seed,
        )
        (trial_id,) = trials.add(study_id, [new], ctx.clock())
        return _grant(ctx, session, locked, trials.get(trial_id), runner)


def _grant(ctx: Context, session: Session, study: Study, trial: Trial, runner: Runner) -> Grant:
    now = ctx.clock()
    if study.state is StudyState.QUEUED:
        Studies(session).set_state(study, StudyState.RUNNING, now)
    Studies(session).touch(study.id)
    leases = Leases(session)
    if trial.lease_id is not None:
        # From here on the former holder's calls are refused.
        leases.end(trial.lease_id, LeaseState.EXPIRED, now)
    lease = Lease(
        id=secrets.token_urlsafe(32),
        trial_id=trial.id,
        attempt=trial.attempts + 1,
        runner=runner.name,
        state=LeaseState.HELD,
        acquired_at=now,
        expires_at=now + ctx.lease_time,
        result=None,
    )
    leases.add(lease)
    leases.see_runner(runner.name, now, lease_id=lease.id)
    if lease.attempt > 1 and trial.checkpoint is None:
        Trials(session).forget_metrics(trial.id)
    Trials(session).set_state(
        trial, TrialState.RUNNING, now, lease_id=lease.id, attempts=lease.attempt, stop_reason=None
    )
    leased = replace(trial, state=TrialState.RUNNING, lease_id=lease.id, attempts=lease.attempt)
    return Grant(lease, leased, study)


@dataclass(frozen=True, slots=True)
class Demand:
    """How many runners of one shape could work right now, those that already do included."""

    cpus: float
    gpus: float
    slots: int


def demand(ctx: Context, team_id: str | None = None) -> list[Demand]:
    """Slots by resource shape: per study, trials that run or could run now, at most its concurrency."""
    expire_leases(ctx)
    with ctx.db.read() as session:
        studies = Studies(session).with_work(team_id)
        counts = Trials(session).counts([s.id for s in studies])
    slots: dict[tuple[float, float], int] = {}
    for study in studies:
        mine = counts[study.id]
        open_trials = sum(n for (_, s), n in mine.items() if s in (TrialState.QUEUED, TrialState.RUNNING))
        if study.phase is StudyPhase.SEARCH:
            open_trials += max(0, study.spec.search.trials - search_trials(mine))
        shape = (study.spec.resources.cpus, study.spec.resources.gpus)
        slots[shape] = slots.get(shape, 0) + min(open_trials, study.spec.search.concurrency)
    return [Demand(cpus, gpus, n) for (cpus, gpus), n in sorted(slots.items()) if n > 0]
