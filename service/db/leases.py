"""Leases and runners in SQL."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from ..domain.records import Lease
from ..domain.states import LeaseState
from ..errors import NotFound
from .models import LeaseRow, RunnerRow


def _record(row: LeaseRow) -> Lease:
    return Lease(
        id=row.id,
        trial_id=row.trial_id,
        attempt=row.attempt,
        runner=row.runner,
        state=LeaseState(row.state),
        acquired_at=row.acquired_at,
        expires_at=row.expires_at,
        result=row.result,
    )


class Leases:
    """Reads and writes leases in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, lease: Lease) -> None:
        """Record a new lease."""
        self._session.add(
            LeaseRow(
                id=lease.id,
                trial_id=lease.trial_id,
                attempt=lease.attempt,
                runner=lease.runner,
                state=lease.state,
                acquired_at=lease.acquired_at,
                expires_at=lease.expires_at,
            )
        )
        self._session.flush()

    def get(self, lease_id: str) -> Lease:
        """The lease.

        Raises:
            NotFound: there was never such a lease.
        """
        row = self._session.get(LeaseRow, lease_id, populate_existing=True)
        if row is None:
            raise NotFound("there is no such lease")
        return _record(row)

    def expired(self, now: datetime) -> list[Lease]:
        """Held leases whose time is over."""
        query = select(LeaseRow).where(LeaseRow.state == LeaseState.HELD, LeaseRow.expires_at < now)
        return [_record(row) for row in self._session.scalars(query.order_by(LeaseRow.expires_at))]

    def renew(self, lease_id: str, expires_at: datetime) -> None:
        """Hold the lease until ``expires_at``."""
        self._write(lease_id, state=LeaseState.HELD, expires_at=expires_at, ended_at=None)

    def end(self, lease_id: str, state: LeaseState, now: datetime, result: dict[str, Any] | None = None) -> None:
        """The attempt is over."""
        self._write(lease_id, state=state, ended_at=now, result=result)

    def _write(self, lease_id: str, **values: Any) -> None:
        self._session.execute(update(LeaseRow).where(LeaseRow.id == lease_id).values(**values))

    def see_runner(self, name: str, now: datetime, **values: Any) -> None:
        """Remember that a runner asked for work."""
        row = self._session.get(RunnerRow, name)
        if row is None:
            row = RunnerRow(name=name, first_seen_at=now, cpus=0.0, gpus=0.0, warm=[])
            self._session.add(row)
        row.last_seen_at = now
        for key, value in values.items():
            setattr(row, key, value)

    def warm_keys(self, since: datetime, except_runner: str) -> set[str]:
        """Model keys that other runners, seen since then, hold warm."""
        query = select(RunnerRow.warm).where(RunnerRow.last_seen_at >= since, RunnerRow.name != except_runner)
        return {key for warm in self._session.scalars(query) for key in warm}
