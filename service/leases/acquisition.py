"""Lease trials to runners: exactly as many as the study asks for, however many runners race."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from ..context.combiner import Combiner, NotServed
from ..context.context import Context
from ..db.leases import Leases
from ..db.retries import retried
from ..domain.operation import RunnerSeen
from ..errors import Contention, NotFound, Overloaded, Unavailable
from .grants import Ask, Grant, Runner, see, serve
from .results import requeue_lost
from .standings import Standing, look_at

Item = TypeVar("Item")
Answer = TypeVar("Answer")
SEEN_RESOLUTION = timedelta(seconds=10)
# Not every request needs to look for expired leases.
EXPIRY_SECONDS = 0.5
# How long a request waits for its turn at a study, and after how long a runner should ask again: when there was nothing
# to do, and when its turn did not come in time.
PATIENCE_SECONDS = 5.0
IDLE_SECONDS = 1.0
BUSY_SECONDS = 2.0

__all__ = ["Acquired", "Grant", "Runner", "acquire", "expire_leases"]


@dataclass(frozen=True, slots=True)
class Acquired:
    """The trials a runner got. If there are none, ``retry_after_seconds`` says when it should ask again."""

    grants: list[Grant]
    retry_after_seconds: float | None = None


def acquire(ctx: Context, runner: Runner, wanted: int) -> Acquired:
    """Lease up to ``wanted`` trials to a runner.

    A busy server is no error: a request that cannot be served in time gets no trial and is told when to ask again.
    Requests that arrive together share what they read, propose and write (:mod:`.combining`).

    Raises:
        Unavailable: the database does not answer.
    """
    grants: list[Grant] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    retry_after = IDLE_SECONDS
    try:
        expire_leases(ctx)
        while len(grants) < wanted and (grant := _acquire_one(ctx, runner, deadline)) is not None:
            grants.append(grant)
        if not grants:
            _together(ctx, ctx.idles, "", runner, lambda runners: _note_idle(ctx, runners), deadline)
    except (NotServed, Contention, Overloaded) as error:
        if ctx.db.in_unit:
            # What came before in this transaction is not stored yet; the caller sends the request again.
            raise Contention("other requests are being served for this study; retry") from error
        retry_after = BUSY_SECONDS
    except Unavailable:
        # Trials that are granted already must reach their runner.
        if ctx.db.in_unit or not grants:
            raise
    return Acquired(grants, None if grants else retry_after)


def _together(
    ctx: Context,
    combiner: Combiner[Item, Answer],
    key: str,
    item: Item,
    serve: Callable[[Sequence[Item]], Sequence[Answer]],
    deadline: float,
) -> Answer:
    """Serve an item together with others of its key that wait."""
    if ctx.db.in_unit:
        # Other callers must not see this open transaction, so it serves only its own.
        return serve([item])[0]
    return combiner.call(key, item, serve, max(0.0, deadline - time.monotonic()))


@retried
def _note_idle(ctx: Context, runners: Sequence[Runner]) -> list[None]:
    """Record runners that found nothing to do, each at most once in a while."""
    now = ctx.clock()
    with ctx.db.read() as session:
        seen = {r.name: Leases(session).runner(r.name) for r in runners}
    changed = [r for r in {r.name: r for r in runners}.values() if not _is_known(seen[r.name], r, now)]
    if changed:
        with ctx.db.write() as session:
            see(session, [(runner, None) for runner in changed], now)
    return [None] * len(runners)


def _is_known(seen: RunnerSeen | None, runner: Runner, now: datetime) -> bool:
    offer = (runner.shape, list(runner.warm), runner.team_id, runner.host)
    return (
        seen is not None
        and seen.lease_id is None
        and timedelta(0) <= now - seen.last_seen_at < SEEN_RESOLUTION
        and (seen.shape, seen.warm, seen.team_id, seen.host) == offer
    )


def expire_leases(ctx: Context) -> None:
    """Queue the trials of expired leases again. A lease stays renewable until its trial is leased again."""
    ctx.was_away()
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
    """If the clock was set back, leases would last longer by that much."""
    with ctx.db.write() as session:
        Leases(session).shorten(ctx.clock() + ctx.lease_time)


@retried
def _requeue(ctx: Context, lease_id: str, now: datetime) -> None:
    with ctx.db.write() as session:
        requeue_lost(session, lease_id, now)


def _acquire_one(ctx: Context, runner: Runner, deadline: float) -> Grant | None:
    def look(runners: Sequence[Runner]) -> list[Standing]:
        return [look_at(ctx, runners)] * len(runners)

    standing: Standing = _together(ctx, ctx.looks, runner.team_id or "", runner, look, deadline)
    for load in standing.in_turn(runner):
        grant = _from_study(ctx, Ask(load, runner), deadline)
        if grant is not None:
            return grant
    return None


def _from_study(ctx: Context, ask: Ask, deadline: float) -> Grant | None:
    try:
        granted: Grant | None = _together(ctx, ctx.asks, ask.load.id, ask, lambda asks: serve(ctx, asks), deadline)
    except NotFound:
        # The study was deleted meanwhile.
        return None
    return granted
