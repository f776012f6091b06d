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
from ..db.trial_counts import Counts
from ..db.trials import Trials
from ..domain import seeds
from ..domain.operation import RunnerSeen
from ..domain.records import (
    UNRECORDED,
    Lease,
    NewTrial,
    Observation,
    Study,
    StudyLoad,
    Trial,
    TrialCounts,
    next_number,
)
from ..domain.shape import Shape
from ..domain.states import EventKind, LeaseState, StudyPhase, StudyState, TrialPhase, TrialState
from ..errors import Contention
from ..search.coordinates import method_of, parameters_of
from ..search.policy import Problem, Proposal
from ..studies.progress import advance, search_trials
from ..tenancy.quotas import room_for_trials
from .demand import queued_trials, running_trials

# Replicas that propose the same number race: one wins, the others propose again on the new history.
ASK_ATTEMPTS = 20
# How long one pass proposes. It then stores what it has; the next pass serves the rest.
PASS_SECONDS = 1.0


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
    """A runner that wants a trial of a study, as the study was when it asked."""

    load: StudyLoad
    runner: Runner


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
    most, queued = len(runners), any(queued_trials(ask.load.counts) for ask in asks)
    known: StudyLoad | None = load
    grants: list[Grant | None] = []
    for _ in range(ASK_ATTEMPTS):
        try:
            if queued:
                grants += _grant_queued(ctx, load, runners[len(grants) :])
            if len(grants) == len(runners):
                return grants
            made, outcome = _propose_and_record(ctx, load, known, runners[len(grants) :][:most], deadline)
        except Exception:
            # Committed grants must reach their runners. The next request meets the error.
            if grants and not ctx.db.in_unit:
                return grants
            raise
        grants += made
        known = None
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
        room = _room(session, study, load, Counts(session).of_studies([study.id])[study.id], len(runners))
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
    room = _slots(study, counts, wanted)
    return room_for_trials(session, load, room, lock=lock) if load.limited and room else room


def _slots(study: Study, counts: TrialCounts, wanted: int) -> int:
    """How many of ``wanted`` further trials the study's state and concurrency allow."""
    if study.state not in (StudyState.QUEUED, StudyState.RUNNING):
        return 0
    return max(0, min(wanted, study.spec.search.concurrency - running_trials(counts)))


def _yet_to_ask(study: Study, counts: TrialCounts) -> int:
    """Search trials that are planned and not proposed yet."""
    return max(0, study.planned - search_trials(counts)) if study.phase is StudyPhase.SEARCH else 0


def _propose_and_record(
    ctx: Context, load: StudyLoad, known: StudyLoad | None, runners: Sequence[Runner], deadline: float
) -> tuple[list[Grant], _Outcome]:
    """Propose outside of any write transaction, then record. The trial's number decides between replicas.

    ``known`` is what was read of the study just now, if anything.
    """
    snapshot = ctx.histories.snapshot(ctx.db, load.id, known)
    study = snapshot.study
    wanted = min(len(runners), _yet_to_ask(study, snapshot.counts))
    if wanted and load.limited:
        # A unit of work reads through its own transaction: a second connection could wait for the rows that it holds.
        with ctx.db.read() if ctx.db.in_unit else ctx.db.look() as session:
            room = _room(session, study, load, snapshot.counts, wanted, lock=False)
    else:
        room = _slots(study, snapshot.counts, wanted)
    if not room:
        return [], _Outcome.NONE_LEFT
    try:
        return _record(ctx, load, runners, snapshot, _propose(ctx, snapshot, room, deadline))
    except IntegrityError:
        return [], _Outcome.RACED


@dataclass(frozen=True, slots=True)
class _Proposed:
    """Proposals for the next trials; ``exhausted`` if the space holds no more after them."""

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
            return _Proposed(proposals, exhausted=True)
        proposals.append(proposal)
        running = Observation(
            number, TrialState.RUNNING, proposal.params, proposal.point, proposal.attrs, version=UNRECORDED
        )
        history.update([running])
    return _Proposed(proposals, exhausted=False)


@retried
def _record(
    ctx: Context, load: StudyLoad, runners: Sequence[Runner], snapshot: Snapshot, proposed: _Proposed
) -> tuple[list[Grant], _Outcome]:
    now, proposals, first = ctx.clock(), proposed.proposals, snapshot.next_number
    with ctx.db.write() as session:
        study = Studies(session).get(load.id, lock=True)
        # Whatever changes a trial changes the study's version.
        counts = (
            snapshot.counts
            if study.version == snapshot.study.version
            else Counts(session).of_studies([study.id])[study.id]
        )
        if next_number(counts) != first:
            return [], _Outcome.RACED
        room = _room(session, study, load, counts, min(len(runners), _yet_to_ask(study, counts)))
        new = [_new_trial(study, first + k, p) for k, p in enumerate(proposals[:room])]
        grants = _start(ctx, session, study, new, runners[: len(new)], now)
        if proposed.exhausted and len(proposals) < room:
            study = Studies(session).set_planned(study, search_trials(counts) + len(grants))
            advance(session, study, now)
            return grants, _Outcome.NONE_LEFT
        more = len(grants) == len(runners) or len(proposals) < room
        return grants, _Outcome.MORE if more else _Outcome.NONE_LEFT


def _start(
    ctx: Context, session: Session, study: Study, new: Sequence[NewTrial], runners: Sequence[Runner], now: datetime
) -> list[Grant]:
    """Store new trials of a locked study, each leased to one of the runners."""
    if not new:
        return []
    study = _started(session, study, now)
    ids = [_lease_id() for _ in new]
    trials = Trials(session).add_running(study.id, new, ids, now)
    leases = [_lease(ctx, i, t, 1, r, now) for i, t, r in zip(ids, trials, runners, strict=True)]
    Leases(session).add(leases)
    see(session, list(zip(runners, ids, strict=True)), now)
    return [Grant(lease, trial, study) for lease, trial in zip(leases, trials, strict=True)]


def _lease_id() -> str:
    return secrets.token_urlsafe(32)


def _lease(ctx: Context, lease_id: str, trial: Trial, attempt: int, runner: Runner, now: datetime) -> Lease:
    return Lease(
        id=lease_id,
        trial_id=trial.id,
        attempt=attempt,
        runner=runner.name,
        state=LeaseState.HELD,
        acquired_at=now,
        expires_at=now + ctx.lease_time,
        result=None,
    )


def _new_trial(study: Study, number: int, proposal: Proposal) -> NewTrial:
    return NewTrial(
        number=number,
        phase=TrialPhase.SEARCH,
        method=method_of(proposal.params),
        params=proposal.params,
        point=proposal.point,
        attrs=proposal.attrs,
        parameters=parameters_of(proposal.params, study.plan),
        seed=seeds.repeated(study.spec.search.seed, proposal.replicate),
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
    lease = _lease(ctx, _lease_id(), trial, trial.attempts + 1, runner, now)
    leases.add([lease])
    see(session, [(runner, lease.id)], now)
    values: dict[str, Any] = {"lease_id": lease.id, "attempts": lease.attempt, "stop_reason": None}
    if lease.attempt > 1 and trial.checkpoint is None:
        Metrics(session).forget(trial.id)
        values["curve"] = []
    trial = Trials(session).set_state(trial, TrialState.RUNNING, now, EventKind.TRIAL_STARTED, **values)
    return Grant(lease, trial, study)


def see(session: Session, runners: Sequence[tuple[Runner, str | None]], now: datetime) -> None:
    """Record that runners were seen, with their resources, the base models they hold and their leases."""
    seen = [
        RunnerSeen(
            runner.name,
            runner.team_id,
            runner.shape,
            list(runner.warm),
            lease_id,
            first_seen_at=now,
            last_seen_at=now,
            host=runner.host,
        )
        for runner, lease_id in {r.name: (r, i) for r, i in runners}.values()
    ]
    Leases(session).see_runners(seen)
