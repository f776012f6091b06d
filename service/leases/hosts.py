"""Quarantine hosts that fail trials which other hosts can run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from ..context.context import Context
from ..db.audit import Audit
from ..db.hosts import Hosts
from ..db.leases import Leases
from ..db.retries import retried
from ..db.trial_counts import Counts
from ..domain.operation import Host, RunnerSeen
from ..domain.records import Attempt, Lease, Principal, Study
from ..domain.states import TrialState
from ..errors import NotFound

# Consecutive failures, in studies that have finished trials, that quarantine a host.
MOST_FAILURES = 3
# Failures of one host within this time count as one: a crash ends the attempts of all its runners.
AT_ONCE = timedelta(seconds=20)
# A host is alive if one of its runners was seen within this time.
SEEN = timedelta(minutes=10)


def quarantined(session: Session, hosts: Iterable[tuple[str | None, str | None]]) -> set[tuple[str | None, str | None]]:
    """The quarantined ones of the given hosts, each with the team of its runners (``None``: all teams)."""
    found = set()
    for team_id, host in {h for h in hosts if h[1] is not None}:
        known = Hosts(session).get(team_id, str(host))
        if known is not None and known.quarantined_at is not None:
            found.add((team_id, host))
    return found


def clear(session: Session, attempt: Attempt) -> None:
    """Reset the failures of an attempt's host: the attempt succeeded, or its runner was seen again."""
    if not attempt.host_failed:
        return
    runner = _runner_of(session, attempt.lease)
    if runner is not None and runner.host is not None:
        Hosts(session).write(runner.team_id, runner.host, failures=0, reason=None, quarantined_at=None)


def blame(session: Session, study: Study, lease: Lease, now: datetime, reason: str) -> None:
    """Count a failed attempt against its host, if its study has finished trials.

    Three consecutive failures quarantine the host, unless it is the only one alive. Failures within ``AT_ONCE`` count
    as one.
    """
    runner = _runner_of(session, lease)
    counts = Counts(session).of_studies([study.id])[study.id]
    works = any(n for (_, state), n in counts.items() if state is TrialState.COMPLETED)
    if runner is None or runner.host is None or not works:
        return
    hosts, team, host = Hosts(session), runner.team_id, runner.host
    hosts.know(team, host)
    known = hosts.get(team, host, lock=True)
    assert known is not None
    if known.failed_at is not None and timedelta(0) <= now - known.failed_at < AT_ONCE:
        return
    failures = known.failures + 1
    hosts.write(team, host, failures=failures, reason=reason[:2000], failed_at=now)
    if failures >= MOST_FAILURES and known.quarantined_at is None and not hosts.is_last(team, host, now - SEEN):
        hosts.write(team, host, quarantined_at=now)


def _runner_of(session: Session, lease: Lease) -> RunnerSeen | None:
    return Leases(session).runner(lease.runner)


def list_hosts(ctx: Context) -> list[Host]:
    """Hosts with failures, by name."""
    with ctx.db.read() as session:
        return Hosts(session).list()


@retried
def release_host(ctx: Context, caller: Principal, name: str) -> Host:
    """End a host's quarantine.

    Raises:
        NotFound: no host of that name has failures.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        hosts = Hosts(session)
        known = [h for h in hosts.list() if h.name == name]
        if not known:
            raise NotFound(f"host {name} has no recorded failures")
        for host in known:
            hosts.write(host.team_id, name, failures=0, failed_at=None, quarantined_at=None)
        Audit(session).record(caller, now, "host.release", name)
        return replace(known[0], failures=0, failed_at=None, quarantined_at=None)
