"""Leases and runners in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Table, bindparam, delete, exists, func, insert, or_, select, update
from sqlalchemy.orm import Session

from ..domain.operation import RunnerSeen
from ..domain.records import Attempt, Lease
from ..domain.shape import Shape
from ..domain.states import LeaseState
from ..errors import NotFound
from .models import HostRow, LeaseRow, RunnerRow, StudyRow, TrialRow
from .studies import study_record
from .trials import trial_record
from .upserts import Upsert

# Built once: these run with every lease, report and result.
_LEASES, _RUNNERS = cast(Table, LeaseRow.__table__), cast(Table, RunnerRow.__table__)
_INSERT = insert(_LEASES)
_HOST_FAILED = exists().where(
    RunnerRow.name == LeaseRow.runner,
    HostRow.name == RunnerRow.host,
    HostRow.team_id == func.coalesce(RunnerRow.team_id, ""),
    or_(HostRow.failures != 0, HostRow.quarantined_at.is_not(None)),
)
# PostgreSQL locks the rows in the order named here, the order of locks everywhere: the study, then its trial.
_LOCKED = (
    select(LeaseRow, TrialRow, StudyRow, _HOST_FAILED)
    .join(TrialRow, TrialRow.id == LeaseRow.trial_id)
    .join(StudyRow, StudyRow.id == TrialRow.study_id)
    .where(LeaseRow.id == bindparam("lease"), StudyRow.deleted_at.is_(None))
    .with_for_update(of=[StudyRow, TrialRow, LeaseRow])
    .execution_options(populate_existing=True)
)
# A runner's row keeps the last lease it was given; a runner is idle once that lease is not held any more.
_SEEN = select(RunnerRow, LeaseRow.state == LeaseState.HELD).outerjoin(LeaseRow, LeaseRow.id == RunnerRow.lease_id)
_FRESH = {"populate_existing": True}
_SAID = ("team_id", "cpus", "gpus", "shape", "warm", "lease_id", "last_seen_at", "host")
_SEE = Upsert(
    RunnerRow,
    lambda rows: rows.on_conflict_do_update(
        index_elements=["name"],
        set_={name: rows.excluded[name] for name in _SAID},
    ),
)
_HEAR = (
    update(_RUNNERS)
    .where(_RUNNERS.c.name == bindparam("runner"), _RUNNERS.c.last_seen_at < bindparam("now"))
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
        total_steps=row.total_steps,
    )


class Leases:
    """Reads and writes leases in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, leases: Sequence[Lease]) -> None:
        """Record new leases."""
        rows = [
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
            }
            for lease in leases
        ]
        self._session.connection().execute(_INSERT, rows)

    def locked(self, lease_id: str, team_id: str | None) -> Attempt:
        """A lease with its trial and study, all locked for this transaction.

        Raises:
            NotFound: there was never such a lease in this team (``None``: in any), or its study is deleted.
        """
        query = _LOCKED if team_id is None else _LOCKED.where(StudyRow.team_id == team_id)
        found = self._session.execute(query, {"lease": lease_id}).one_or_none()
        if found is None:
            raise NotFound("there is no such lease")
        lease, trial, study, host_failed = found
        return Attempt(_record(lease), trial_record(trial), study_record(study), bool(host_failed))

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

    def renew(
        self,
        lease_id: str,
        expires_at: datetime,
        progress: tuple[int, datetime] | None = None,
        total_steps: int | None = None,
    ) -> None:
        """Renew the lease until ``expires_at``; ``progress`` is a new step and its time."""
        values: dict[str, Any] = {"state": LeaseState.HELD, "expires_at": expires_at, "ended_at": None}
        if progress is not None:
            values["progress_step"], values["progress_at"] = progress
        if total_steps is not None:
            values["total_steps"] = total_steps
        self._write(lease_id, **values)

    def end(self, lease_id: str, state: LeaseState, now: datetime, result: dict[str, Any] | None = None) -> None:
        """End a lease with its final ``state`` and the attempt's ``result``."""
        self._write(lease_id, state=state, ended_at=now, result=result)

    def _write(self, lease_id: str, **values: Any) -> None:
        self._session.execute(update(LeaseRow).where(LeaseRow.id == lease_id).values(**values))

    def see_runners(self, seen: Sequence[RunnerSeen]) -> None:
        """Record that runners asked for work."""
        rows = [
            {name: getattr(s, name) for name in RunnerSeen.__slots__}
            | {"cpus": s.shape.cpus, "gpus": s.shape.gpus, "shape": s.shape.as_dict()}
            for s in seen
        ]
        _SEE.run(self._session, rows)

    def hear_of(self, name: str, now: datetime) -> None:
        """Record that a runner was seen now."""
        self._session.connection().execute(_HEAR, {"runner": name, "now": now})

    def runner(self, name: str) -> RunnerSeen | None:
        """The runner of that name."""
        found = self._session.execute(_SEEN.where(RunnerRow.name == name), execution_options=_FRESH).one_or_none()
        return None if found is None else _seen(*found)

    def runners(self, team_id: str | None) -> list[RunnerSeen]:
        """Runners (of a team, or all), by name."""
        query = _SEEN.order_by(RunnerRow.name)
        if team_id is not None:
            query = query.where(RunnerRow.team_id == team_id)
        return [_seen(*row) for row in self._session.execute(query, execution_options=_FRESH)]

    def forget_runners(self, moment: datetime) -> None:
        """Remove runners that were last seen before ``moment``."""
        self._session.execute(delete(RunnerRow).where(RunnerRow.last_seen_at < moment))


def _seen(row: RunnerRow, busy: bool | None) -> RunnerSeen:
    return RunnerSeen(
        name=row.name,
        team_id=row.team_id,
        shape=Shape.of(row.shape) if row.shape else Shape(row.cpus, row.gpus),
        warm=row.warm,
        lease_id=row.lease_id if busy else None,
        first_seen_at=row.first_seen_at,
        last_seen_at=row.last_seen_at,
        host=row.host,
    )
