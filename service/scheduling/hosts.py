"""Machines that fail trials which others can run: noticed, quarantined, given back by an admin."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from ..db.audit import Audit
from ..db.hosts import Hosts
from ..db.leases import Leases
from ..db.trials import Trials
from ..domain.operation import Host
from ..domain.records import Lease, Principal, Study
from ..domain.states import TrialState
from ..errors import NotFound
from .context import Context
from .retrying import retried

# Attempts in a row, of studies that are known to work, that end a host's part.
MOST_FAILURES = 3
# Another host counts as there if one of its runners was heard of so lately.
SEEN = timedelta(minutes=10)


def is_quarantined(ctx: Context, host: str | None) -> bool:
    """Whether runners on a host are to be given nothing."""
    if host is None:
        return False
    with ctx.db.read() as session:
        known = Hosts(session).get(host)
    return known is not None and known.quarantined_at is not None


def clear(session: Session, lease: Lease) -> None:
    """An attempt went well: what spoke against its host does not count any more."""
    host = _host_of(session, lease)
    if host is not None and (known := Hosts(session).get(host)) is not None and known.failures:
        Hosts(session).write(host, failures=0, reason=None)


def blame(session: Session, study: Study, lease: Lease, now: datetime, reason: str) -> None:
    """An attempt failed. It counts against its host if its study has finished trials, so can be run.

    The third in a row quarantines the host, unless it is the last that runners were heard of from.
    """
    host = _host_of(session, lease)
    counts = Trials(session).counts([study.id])[study.id]
    if host is None or not any(n for (_, state), n in counts.items() if state is TrialState.COMPLETED):
        return
    hosts = Hosts(session)
    hosts.know(host)
    known = hosts.get(host, lock=True)
    assert known is not None
    failures = known.failures + 1
    hosts.write(host, failures=failures, reason=reason[:2000])
    if failures >= MOST_FAILURES and known.quarantined_at is None and not hosts.is_last(host, now - SEEN):
        hosts.write(host, quarantined_at=now)


def _host_of(session: Session, lease: Lease) -> str | None:
    runner = Leases(session).runner(lease.runner)
    return None if runner is None else runner.host


def list_hosts(ctx: Context) -> list[Host]:
    """Hosts that something spoke against, by name."""
    with ctx.db.read() as session:
        return Hosts(session).list()


@retried
def release_host(ctx: Context, caller: Principal, name: str) -> Host:
    """End a host's quarantine.

    Raises:
        NotFound: nothing is known against a host of that name.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        if Hosts(session).get(name, lock=True) is None:
            raise NotFound(f"nothing is known against a host {name}")
        Hosts(session).write(name, failures=0, quarantined_at=None)
        Audit(session).record(caller, now, "host.release", name)
        found = Hosts(session).get(name)
        assert found is not None
        return found
