"""Grant trials of one study to all waiting runners: queued trials first, then new proposals."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..context.context import Context
from ..context.history import Snapshot
from ..db.leases import Leases
from ..db.metrics import Metrics
from ..db.retries import retried
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.operation import RunnerSeen
from ..domain.records import UNRECORDED, Lease, NewTrial, Observation, Study, StudyLoad, Trial, TrialCounts
from ..domain.shape import Shape
from ..domain.states import EventKind, LeaseState, StudyPhase, StudyState, TrialPhase, TrialState
from ..errors import Contention
from ..search.policy import Problem, Proposal
from ..studies.progress import advance, search_trials
from ..tenancy.quotas import room_for_trials
from .demand import running_trials

# Replicas that propose the same number race: one wins, the others propose again on the new history.
ASK_ATTEMPTS = 20
# How long one pass proposes. It then stores what it has; the next pass serves the rest.
PASS_SECONDS = 1.0
# Replicates of a configuration train with seeds that neither the search nor the confirmation uses otherwise.
REPLICATE_SEED_STEP = 1000


@dataclass(frozen=True, slots=True)
class Runner:
    """A runner that asks for work: its team (``None``: all), its resources and the base models it holds."""

    name: str
    shape: Shape
    team_id: str | None = None
    warm: tuple[str, ...] = ()
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease with its trial and study."""

    lease: Lease
    trial: Trial
    study: Study


@dataclass(frozen=True, slots=True)
class Ask:
    """A runner that wants a trial of a study, and whether a trial was queued when it asked."""

    load: StudyLoad
    runner: Runner
    queued: bool


class _Outcome(Enum):
    """The outcome of proposing."""

    MORE = auto()  # every proposal was stored; there may be more to have
    NONE_LEFT = auto()  # no room, or nothing left to try
    RACED = auto()  # another replica stored its proposals first


def serve(ctx: Context, asks: Sequence[Ask]) -> list[Grant | None]:
    """Serve the requests for one study in order; ``None`` for those that get no trial.

    Reads the history once and writes one transaction for all. The proposals equal those that the same requests get one
    by one: each is made as if the ones before it were running. After ``PASS_SECONDS`` only the first requests are
    answered, at least one.

    Raises:
        NotFound: the study was deleted.
        Contention: other replicas stored the same numbers first every time; nothing was granted.
    """
    load, runners = asks[-1].load, [ask.runner for ask in asks]
    deadline = time.monotonic() + PASS_SECONDS
    most, queued = len(runners), any(ask.queued for ask in asks)
    grants: list[Grant | None] = []
    for _ in range(ASK_ATTEMPTS):
        try:
            if queued:
                grants += _grant_queued(ctx, load, runners[len(grants) :])
            if len(grants) == len(runners):
                return grants
            made, outcome = _propose_and_record(ctx, load, runners[len(grants) :][:most], deadline)
        except Exception:
            # Committed grants must reach their runners. The next request meets the error.
            if grants and not ctx.db.in_unit:
                return grants
            raise
        grants += made
        if outcome is _Outcome.NONE_LEFT:
            return [*grants, *[None] * (len(runners) - len(grants))]
        if outcome is _Outcome.RACED:
            # A smaller batch is stored sooner, so a replica that lost the race wins eventually.
            most, queued = max(1, most // 2), True
        if grants and time.monotonic() > deadline:
            return grants
    if not grants:
        raise Contention("other replicas of the server are serving this study; retry")
    return grants


@retried
def _grant_queued(ctx: Context, load: StudyLoad, runners: Sequence[Runner]) -> list[Grant]:
    """Grant a study's queued trials, lowest number first, up to its free slots."""
    now = ctx.clock()
    with ctx.db.write() as session:
        study = Studies(session).get(load.id, lock=True)
        room = _room(session, study, load, Trials(session).counts([study.id])[study.id], len(runners))
        grants: list[Grant] = []
        for runner in runners[:room]:
            trial = Trials(session).first_queued(study.id)
            if trial is None:
                break
            study = _started(session, study, now)
            grants.append(_grant(ctx, session, study, trial, runner, now))
        return grants


def _room(
    session: Session, study: Study, load: StudyLoad, counts: TrialCounts, wanted: int, *, lock: bool = True
) -> int:
    """How many of ``wanted`` further trials of the study may start now; ``lock`` keeps it so until the commit."""
    if study.state not in (StudyState.QUEUED, StudyState.RUNNING):
        return 0
    room = max(0, min(wanted, study.spec.search.concurrency - running_trials(counts)))
    return room_for_trials(session, load, room, lock=lock) if load.limited and room else room


def _yet_to_ask(study: Study, counts: TrialCounts) -> int:
    """Search trials that are planned and not proposed yet."""
    return max(0, study.planned - search_trials(counts)) if study.phase is StudyPhase.SEARCH else 0


def _propose_and_record(
    ctx: Context, load: StudyLoad, runners: Sequence[Runner], deadline: float
) -> tuple[list[Grant], _Outcome]:
    """Propose outside of any write transaction, then record. The trial's number decides between replicas."""
    snapshot = ctx.histories.snapshot(ctx.db, load.id)
    study = snapshot.study
    # A unit of work reads through its own transaction: a second connection could wait for the rows that it holds.
    with ctx.db.read() if ctx.db.in_unit else ctx.db.look() as session:
        counts = Trials(session).counts([study.id])[study.id]
        wanted = min(len(runners), _yet_to_ask(study, counts))
        room = _room(session, study, load, counts, wanted, lock=False)
    if not room:
        return [], _Outcome.NONE_LEFT
    try:
        return _record(ctx, load, runners, _propose(ctx, snapshot, room, deadline))
    except IntegrityError:
        return [], _Outcome.RACED


@dataclass(frozen=True, slots=True)
class _Proposed:
    """Proposals for trials from number ``first`` on; ``exhausted`` if the space holds no more after them."""

    first: int
    proposals: list[Proposal]
    exhausted: bool


def _propose(ctx: Context, snapshot: Snapshot, most: int, deadline: float) -> _Proposed:
    """Up to ``most`` proposals. The first is made even after the deadline."""
    study, history = snapshot.study, snapshot.history
    problem = Problem(study.id, study.spec, study.plan)
    proposals: list[Proposal] = []
    while len(proposals) < most and (not proposals or time.monotonic() < deadline):
        number, began = snapshot.next_number + len(proposals), time.perf_counter()
        proposal = ctx.policy.propose(problem, history, number)
        ctx.observe_sampling(study.spec.search.sampler, time.perf_counter() - began)
        if proposal is None:
            return _Proposed(snapshot.next_number, proposals, exhausted=True)
        proposals.append(proposal)
        running = Observation(
            number, TrialState.RUNNING, proposal.params, proposal.point, proposal.attrs, version=UNRECORDED
        )
        history.update([running])
    return _Proposed(snapshot.next_number, proposals, exhausted=False)


@retried
def _record(
    ctx: Context, load: StudyLoad, runners: Sequence[Runner], proposed: _Proposed
) -> tuple[list[Grant], _Outcome]:
    now, proposals = ctx.clock(), proposed.proposals
    with ctx.db.write() as session:
        study = Studies(session).get(load.id, lock=True)
        trials = Trials(session)
        counts = trials.counts([study.id])[study.id]
        # Numbers from 0 on have no gaps, so the next one is how many there are.
        if sum(n for (phase, _), n in counts.items() if phase is not TrialPhase.MEASUREMENT) != proposed.first:
            return [], _Outcome.RACED
        room = _room(session, study, load, counts, min(len(runners), _yet_to_ask(study, counts)))
        new = [_new_trial(study, proposed.first + k, p) for k, p in enumerate(proposals[:room])]
        stored = trials.add(study.id, new, now)
        if stored:
            study = _started(session, study, now)
        grants = [_grant(ctx, session, study, t, r, now) for t, r in zip(stored, runners, strict=False)]
        if proposed.exhausted and len(proposals) < room:
            study = Studies(session).set_planned(study, search_trials(counts) + len(stored))
            advance(session, study, now)
            return grants, _Outcome.NONE_LEFT
        more = len(grants) == len(runners) or len(proposals) < room
        return grants, _Outcome.MORE if more else _Outcome.NONE_LEFT


def _new_trial(study: Study, number: int, proposal: Proposal) -> NewTrial:
    pair = study.plan.pair(proposal.params["r1"], proposal.params["r2"])
    assert pair is not None, "the policy proposed a pair that the plan does not admit"
    return NewTrial(
        number=number,
        phase=TrialPhase.SEARCH,
        method="cdka",
        params=proposal.params,
        point=proposal.point,
        attrs=proposal.attrs,
        parameters=pair.unit_parameters * int(proposal.params["r"]),
        seed=study.spec.search.seed + REPLICATE_SEED_STEP * proposal.replicate,
    )


def _started(session: Session, study: Study, now: datetime) -> Study:
    """The locked study, set to running if this is its first trial."""
    if study.state is not StudyState.QUEUED:
        return study
    return Studies(session).set_state(study, StudyState.RUNNING, now)


def _grant(ctx: Context, session: Session, study: Study, trial: Trial, runner: Runner, now: datetime) -> Grant:
    leases = Leases(session)
    if trial.lease_id is not None:
        # From here on, calls under the former lease get 409.
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
    see(session, runner, now, lease.id)
    values: dict[str, Any] = {"lease_id": lease.id, "attempts": lease.attempt, "stop_reason": None}
    if lease.attempt > 1 and trial.checkpoint is None:
        Metrics(session).forget(trial.id)
        values["curve"] = []
    trial = Trials(session).set_state(trial, TrialState.RUNNING, now, EventKind.TRIAL_STARTED, **values)
    return Grant(lease, trial, study)


def see(session: Session, runner: Runner, now: datetime, lease_id: str | None) -> None:
    """Record that a runner was seen, with its resources and the base models it holds."""
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
