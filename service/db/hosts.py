"""Hosts in SQL."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from ..domain.operation import Host
from .models import HostRow, RunnerRow
from .upserts import insert_ignoring


class Hosts:
    """Reads and writes hosts in one session. A host has a row once it has failures."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, team_id: str | None, name: str, *, lock: bool = False) -> Host | None:
        """A team's host with that name (``None``: a host of workers that serve all teams)."""
        query = select(HostRow).where(*_of(team_id, name)).execution_options(populate_existing=True)
        row = self._session.scalars(query.with_for_update() if lock else query).one_or_none()
        return None if row is None else _record(row)

    def list(self) -> list[Host]:
        """Every host that is known, by name."""
        return [_record(row) for row in self._session.scalars(select(HostRow).order_by(HostRow.name, HostRow.team_id))]

    def know(self, team_id: str | None, name: str) -> None:
        """Add a row for a host, if it has none."""
        values = {"team_id": team_id or "", "name": name, "failures": 0}
        self._session.execute(insert_ignoring(self._session, HostRow).values(**values))

    def write(self, team_id: str | None, name: str, **values: Any) -> None:
        """Update a host's columns."""
        self._session.execute(update(HostRow).where(*_of(team_id, name)).values(**values))

    def is_last(self, team_id: str | None, name: str, since: datetime) -> bool:
        """Whether no runner of these workers was seen since ``since`` on another host that is not quarantined."""
        theirs = func.coalesce(RunnerRow.team_id, "")
        other = (
            select(RunnerRow.name)
            .outerjoin(HostRow, and_(HostRow.name == RunnerRow.host, HostRow.team_id == theirs))
            .where(
                theirs == (team_id or ""),
                RunnerRow.last_seen_at >= since,
                RunnerRow.host.is_not(None),
                RunnerRow.host != name,
            )
            .where(or_(HostRow.name.is_(None), HostRow.quarantined_at.is_(None)))
        )
        return not self._session.scalar(select(exists(other)))


def _of(team_id: str | None, name: str) -> tuple[ColumnElement[bool], ...]:
    return HostRow.team_id == (team_id or ""), HostRow.name == name


def _record(row: HostRow) -> Host:
    return Host(row.team_id, row.name, row.failures, row.reason, row.failed_at, row.quarantined_at)
