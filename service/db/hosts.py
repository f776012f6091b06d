"""Hosts in SQL."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import exists, or_, select, update
from sqlalchemy.orm import Session

from ..domain.operation import Host
from .models import HostRow, RunnerRow
from .upserts import insert_ignoring


class Hosts:
    """Reads and writes hosts in one session. A host is known once something speaks against it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, name: str, *, lock: bool = False) -> Host | None:
        """The host of that name."""
        query = select(HostRow).where(HostRow.name == name).execution_options(populate_existing=True)
        row = self._session.scalars(query.with_for_update() if lock else query).one_or_none()
        return None if row is None else Host(row.name, row.failures, row.reason, row.quarantined_at)

    def list(self) -> list[Host]:
        """Every host that is known, by name."""
        rows = self._session.scalars(select(HostRow).order_by(HostRow.name))
        return [Host(row.name, row.failures, row.reason, row.quarantined_at) for row in rows]

    def know(self, name: str) -> None:
        """Have a row for a host."""
        self._session.execute(insert_ignoring(self._session, HostRow).values(name=name, failures=0))

    def write(self, name: str, **values: Any) -> None:
        """Change what is known of a host."""
        self._session.execute(update(HostRow).where(HostRow.name == name).values(**values))

    def is_last(self, name: str, since: datetime) -> bool:
        """Whether no runner on another host that may work was heard of since then."""
        other = (
            select(RunnerRow.name)
            .outerjoin(HostRow, HostRow.name == RunnerRow.host)
            .where(RunnerRow.last_seen_at >= since, RunnerRow.host.is_not(None), RunnerRow.host != name)
            .where(or_(HostRow.name.is_(None), HostRow.quarantined_at.is_(None)))
        )
        return not self._session.scalar(select(exists(other)))
