"""Leases and runners in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import Table, bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from ..domain.operation import RunnerSeen
from ..domain.records import Lease
from ..domain.shape import Shape
from ..domain.states import LeaseState
from ..errors import NotFound
from .models import LeaseRow, RunnerRow, TrialRow
from .upserts import Upsert

# Built once: these run with every lease, report and result.
_LEASES, _RUNNERS = cast(Table, LeaseRow.__table__), cast(Table, RunnerRow.__table__)
_INSERT = insert(_LEASES)
_PLACE = (
    select(LeaseRow.trial_id, TrialRow.study_id)
    .join(TrialRow, TrialRow.id == LeaseRow.trial_id)
    .where(LeaseRow.id == bindparam("lease"))
)
_SAID = ("team_id", "cpus", "gpus", "shape", "warm", "lease_id", "last_seen_at", "host")
_SEE = Upsert(
    RunnerRow,
    lambda rows: rows.on_conflict_do_update(
        index_elements=["name"],
        set_={name: rows.excluded[name] for name in _SAID},
    ),
)
_IDLE = (
    update(_RUNNERS).where(_RUNNERS.c.name == bindparam("runner")).values(lease_id=None, last_seen_at=bindparam("now"))
)
_HEAR = (
    update(_RUNNERS)
    .where(_RUNNERS.c.name == bindparam("runner"), _RUNNERS.c.last_seen_at < bindparam("since"))
    .values(last_seen_at=bindparam("now"))
)


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
        progress_at=row.progress_at,
        progress_step=row.progress_step,
    )


class Leases:
    """Reads and writes leases in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, lease: Lease) -> None:
        """Record a new lease."""
        self._session.connection().execute(
            _INSERT,
            {
                "id": lease.id,
                "trial_id": lease.trial_id,
                "attempt": lease.attempt,
                "runner": lease.runner,
                "state": lease.state,
                "acquired_at": lease.acquired_at,
                "expires_at": lease.expires_at,
                "progress_at": lease.acquired_at,
                "progress_step": -1,
            },
        )

    def place(self, lease_id: str) -> tuple[str, str]:
        """The ids of a lease's trial and of its study.

        Raises:
            NotFound: there was never such a lease, or its study is deleted.
        """
        found = self._session.connection().execute(_PLACE, {"lease": lease_id}).one_or_none()
        if found is None:
            raise NotFound("there is no such lease")
        return found[0], found[1]

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
        """Held leases that have expired."""
        query = select(LeaseRow).where(LeaseRow.state == LeaseState.HELD, LeaseRow.expires_at < now)
        return [_record(row) for row in self._session.scalars(query.order_by(LeaseRow.expires_at))]

    def held(self) -> list[Lease]:
        """Every held lease, the oldest first."""
        query = select(LeaseRow).where(LeaseRow.state == LeaseState.HELD).order_by(LeaseRow.acquired_at)
        return [_record(row) for row in self._session.scalars(query)]

    def held_of(self, study_ids: Sequence[str]) -> list[tuple[str, Lease]]:
        """The held leases of studies, each with its study, the oldest first."""
        query = (
            select(TrialRow.study_id, LeaseRow)
            .join(TrialRow, TrialRow.id == LeaseRow.trial_id)
            .where(LeaseRow.state == LeaseState.HELD, TrialRow.study_id.in_(study_ids))
            .order_by(LeaseRow.acquired_at)
        )
        return [(study_id, _record(row)) for study_id, row in self._session.execute(query)]

    def shorten(self, latest: datetime) -> int:
        """Limit expiries to ``latest`` after the clock was set back; returns how many were changed."""
        query = (
            update(LeaseRow)
            .where(LeaseRow.state == LeaseState.HELD, LeaseRow.expires_at > latest)
            .values(expires_at=latest)
            .returning(LeaseRow.id)
        )
        return len(self._session.scalars(query).all())

    def renew(self, lease_id: str, expires_at: datetime, progress: tuple[int, datetime] | None = None) -> None:
        """Renew the lease until ``expires_at``; ``progress`` is a new step and its time."""
        values: dict[str, Any] = {"state": LeaseState.HELD, "expires_at": expires_at, "ended_at": None}
        if progress is not None:
            values["progress_step"], values["progress_at"] = progress
        self._write(lease_id, **values)

    def end(self, lease_id: str, state: LeaseState, now: datetime, result: dict[str, Any] | None = None) -> None:
        """End a lease with its final ``state`` and the attempt's ``result``."""
        self._write(lease_id, state=state, ended_at=now, result=result)

    def _write(self, lease_id: str, **values: Any) -> None:
        self._session.execute(update(LeaseRow).where(LeaseRow.id == lease_id).values(**values))

    def see_runner(self, seen: RunnerSeen) -> None:
        """Record that a runner asked for work."""
        row = {name: getattr(seen, name) for name in RunnerSeen.__slots__}
        row |= {"cpus": seen.shape.cpus, "gpus": seen.shape.gpus, "shape": seen.shape.as_dict()}
        _SEE.run(self._session, [row])

    def set_idle(self, name: str, now: datetime) -> None:
        """Record that a runner is idle."""
        self._session.connection().execute(_IDLE, {"runner": name, "now": now})

    def hear_of(self, name: str, now: datetime, resolution: timedelta) -> None:
        """Record that a runner was seen now, unless it was seen less than ``resolution`` ago."""
        self._session.connection().execute(_HEAR, {"runner": name, "now": now, "since": now - resolution})

    def runner(self, name: str) -> RunnerSeen | None:
        """The runner of that name."""
        row = self._session.get(RunnerRow, name, populate_existing=True)
        return None if row is None else _seen(row)

    def runners(self, team_id: str | None) -> list[RunnerSeen]:
        """Runners (of a team, or all), by name."""
        query = select(RunnerRow).order_by(RunnerRow.name)
        if team_id is not None:
            query = query.where(RunnerRow.team_id == team_id)
        return [_seen(row) for row in self._session.scalars(query)]

    def forget_runners(self, moment: datetime) -> None:
        """Remove runners that were last seen before ``moment``."""
        self._session.execute(delete(RunnerRow).where(RunnerRow.last_seen_at < moment))


def _seen(row: RunnerRow) -> RunnerSeen:
    return RunnerSeen(
        name=row.name,
        team_id=row.team_id,
        shape=Shape.of(row.shape) if row.shape else Shape(row.cpus, row.gpus),
        warm=row.warm,
        lease_id=row.lease_id,
        first_seen_at=row.first_seen_at,
        last_seen_at=row.last_seen_at,
        host=row.host,
    )
