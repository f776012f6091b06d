"""Hand out trials: exactly as many as were asked for, however many runners race for them."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..db.leases import Leases
from ..db.metrics import Metrics
from ..db.studies import Studies
from ..db.teams import Teams
from ..db.trials import Trials
from ..domain.operation import RunnerSeen, Team, Usage
from ..domain.records import Lease, NewTrial, Study, StudyLoad, Trial
from ..domain.shape import Shape
from ..domain.states import EventKind, LeaseState, StudyPhase, StudyState, TrialPhase, TrialState
from ..search.policy import Problem, Proposal
from .advancing import Counts, advance, search_trials
from .context import Context
from .demand import open_slots, running_trials
from .hosts import is_quarantined
from .quotas import in_turn, may_start
from .results import requeue_lost
from .retrying import retried

# Asks that race for the same number: one wins, the others ask again on the new history.
ASK_ATTEMPTS = 20
SEEN_RESOLUTION = timedelta(seconds=10)
# Runners that ask again and again need not look for expired leases every time.
EXPIRY_SECONDS = 0.5
# One ask at a time for a study in this process; whoever waits longer is told to come again.
ASK_SECONDS = 10.0
# Replicates of a configuration train with seeds that neither the search nor the confirmation uses otherwise.
REPLICATE_SEED_STEP = 1000


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
    shape: Shape
    team_id: str | None = None
    warm: tuple[str, ...] = ()
    host: str | None = None


def acquire(ctx: Context, runner: Runner, wanted: int) -> list[Grant]:
    """Lease up to ``wanted`` trials to a runner; an empty list when there is nothing for it to do."""
    expire_leases(ctx)
    grants: list[Grant] = []
    if is_quarantined(ctx, runner.team_id, runner.host):
        wanted = 0
    while len(grants) < wanted and (grant := _acquire_one(ctx, runner)) is not None:
        grants.append(grant)
    if not grants:
        _note_idle(ctx, runner)
    return grants


@retried
def _note_idle(ctx: Context, runner: Runner) -> None:
    """Remember a runner that found nothing to do; one that asks again and again is written down now and then."""
    now = ctx.clock()
    with ctx.db.read() as session:
        seen = Leases(session).runner(runner.name)
    offer = (runner.shape, list(runner.warm), runner.team_id, runner.host)
    if (
        seen is not None
        and seen.lease_id is None
        and timedelta(0) <= now - seen.last_seen_at < SEEN_RESOLUTION
        and (seen.shape, seen.warm, seen.team_id, seen.host) == offer
    ):
        return
    with ctx.db.write() as session:
        _see(session, runner, now, None)


def _see(session: Session, runner: Runner, now: datetime, lease_id: str | None) -> None:
    seen = RunnerSeen(
        runner.name,
        runner.team_id,
        runner.shape,
        list(runner.warm),
        lease_id,
        first_seen_at=now,
        last_seen_at=now,
        host=runner.host,
    )
    Leases(session).see_runner(seen)


def expire_leases(ctx: Context) -> None:
    """Put the trials of expired leases back in the queue; each stays its runner's until another takes it."""
    if ctx.clock_was_set():
        _shorten(ctx)
    now = ctx.clock()
    if now < ctx.expiry_from or not ctx.is_due("expiry", EXPIRY_SECONDS):
        return
    with ctx.db.read() as session:
        expired = [lease.id for lease in Leases(session).expired(now)]
    for lease_id in expired:
        _requeue(ctx, lease_id, now)


@retried
def _shorten(ctx: Context) -> None:
    """After the clock went backwards leases would be held for as long as it went."""
    with ctx.db.write() as session:
        Leases(session).shorten(ctx.clock() + ctx.lease_time)


@retried
def _requeue(ctx: Context, lease_id: str, now: datetime) -> None:
    with ctx.db.write() as session:
        requeue_lost(session, lease_id, now)


def _acquire_one(ctx: Context, runner: Runner) -> Grant | None:
    for load, queued in _in_order(ctx, runner):
        grant = _from_study(ctx, load, runner, queued)
        if grant is not None:
            return grant
    return None


def _in_order(ctx: Context, runner: Runner) -> list[tuple[StudyLoad, bool]]:
    """Studies that have something for this runner, in the order in which it should serve them.

    With each, whether a trial of it waits in the queue.
    """
    with ctx.db.read() as session:
        loads = [s for s in Studies(session).loads(runner.team_id) if runner.shape.holds(s.shape)]
        if not loads:
            return []
        counts = Trials(session).counts([s.id for s in loads])
        teams: dict[str, Team] = {}
        usage: dict[str, Usage] = {}
        if len({s.team_id for s in loads}) > 1 or any(s.limited for s in loads):
            teams = {team.id: team for team in Teams(session).list()}
            usage = Teams(session).usage(list(teams))
    running = {s.id: running_trials(counts[s.id]) for s in loads}
    with_work = [s for s in loads if running[s.id] < s.concurrency and open_slots(s, counts[s.id]) > 0]
    queued = {s.id: any(state is TrialState.QUEUED for _, state in counts[s.id]) for s in with_work}
    return [(s, queued[s.id]) for s in in_turn(with_work, running, teams, usage, runner.warm)]


def _from_study(ctx: Context, load: StudyLoad, runner: Runner, queued: bool) -> Grant | None:
    for _ in range(ASK_ATTEMPTS):
        if queued:
            grant, may_ask = _take_queued(ctx, load, runner)
            if grant is not None or not may_ask:
                return grant
        try:
            grant, raced = _ask(ctx, load, runner)
        except IntegrityError:
            continue
        if grant is not None or not raced:
            return grant
        queued = True
    return None


@retried
def _take_queued(ctx: Context, load: StudyLoad, runner: Runner) -> tuple[Grant | None, bool]:
    """The first queued trial of a study; else whether a new one may be asked for."""
    with ctx.db.write() as session:
        study = Studies(session).get(load.id, lock=True)
        counts = Trials(session).counts([study.id])[study.id]
        if not _has_room(session, study, load, counts):
            return None, False
        queued = Trials(session).first_queued(study.id)
        if queued is not None:
            return _grant(ctx, session, study, queued, runner), False
        return None, _may_ask(study, counts)


def _has_room(session: Session, study: Study, load: StudyLoad, counts: Counts) -> bool:
    if study.state not in (StudyState.QUEUED, StudyState.RUNNING):
        return False
    return running_trials(counts) < study.spec.search.concurrency and (not load.limited or may_start(session, load))


def _may_ask(study: Study, counts: Counts) -> bool:
    return study.phase is StudyPhase.SEARCH and search_trials(counts) < study.planned


def _ask(ctx: Context, load: StudyLoad, runner: Runner) -> tuple[Grant | None, bool]:
    """Ask the policy outside of any write, then record its answer; else whether another ask came first.

    In one process asks of a study come one after the other, so none is in vain; between replicas the number decides.
    """
    with ctx.histories.snapshot(ctx.db, load.id, ASK_SECONDS) as snapshot:
        began = time.perf_counter()
        study, number = snapshot.study, snapshot.next_number
        proposal = ctx.policy.propose(Problem(study.id, study.spec, study.plan), snapshot.history, number)
        ctx.observe_sampling(study.spec.search.sampler, time.perf_counter() - began)
        return _record(ctx, load, runner, proposal, number)


@retried
def _record(
    ctx: Context, load: StudyLoad, runner: Runner, proposal: Proposal | None, number: int
) -> tuple[Grant | None, bool]:
    now = ctx.clock()
    with ctx.db.write() as session:
        study = Studies(session).get(load.id, lock=True)
        trials = Trials(session)
        counts = trials.counts([study.id])[study.id]
        # Numbers from 0 on have no gaps, so the next one is how many there are.
        if sum(n for (phase, _), n in counts.items() if phase is not TrialPhase.MEASUREMENT) != number:
            return None, True
        if not _has_room(session, study, load, counts) or not _may_ask(study, counts):
            return None, False
        if proposal is None:
            Studies(session).set_planned(study.id, search_trials(counts))
            advance(session, Studies(session).get(study.id, lock=True), now)
            return None, False
        structure = study.plan.structure(proposal.params["r1"], proposal.params["r2"])
        assert structure is not None, "the policy proposed a structure that the plan does not admit"
        new = NewTrial(
            number=number,
            phase=TrialPhase.SEARCH,
            method="cdka",
            params=proposal.params,
            point=proposal.point,
            attrs=proposal.attrs,
            parameters=structure.unit_parameters * int(proposal.params["r"]),
            seed=study.spec.search.seed + REPLICATE_SEED_STEP * proposal.replicate,
        )
        (trial,) = trials.add(study.id, [new], now)
        return _grant(ctx, session, study, trial, runner), False


def _grant(ctx: Context, session: Session, study: Study, trial: Trial, runner: Runner) -> Grant:
    now = ctx.clock()
    if study.state is StudyState.QUEUED:
        Studies(session).set_state(study, StudyState.RUNNING, now)
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
    _see(session, runner, now, lease.id)
    values: dict[str, Any] = {"lease_id": lease.id, "attempts": lease.attempt, "stop_reason": None}
    if lease.attempt > 1 and trial.checkpoint is None:
        Metrics(session).forget(trial.id)
        values["curve"] = []
    Trials(session).set_state(trial, TrialState.RUNNING, now, EventKind.TRIAL_STARTED, **values)
    leased = replace(trial, state=TrialState.RUNNING, lease_id=lease.id, attempts=lease.attempt)
    return Grant(lease, leased, study)
