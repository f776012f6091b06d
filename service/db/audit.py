"""The audit log in SQL: who changed what."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..domain.ids import new_id
from ..domain.operation import AuditEntry
from ..domain.records import Principal
from .models import AuditRow


class Audit:
    """Writes the log in the transaction of the change."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def record(self, caller: Principal, now: datetime, action: str, target: str, **detail: Any) -> None:
        """Record that ``caller`` did ``action`` to ``target``. Details never contain secrets."""
        self._session.add(
            AuditRow(
                id=new_id(now),
                at=now,
                team_id=caller.team_id or None,
                token_id=caller.token_id,
                token=caller.name,
                role=caller.role,
                request_id=caller.request_id,
                action=action,
                target=target,
                detail=detail,
            )
        )

    def page(self, team_id: str | None, limit: int, before: str | None, target: str | None) -> list[AuditEntry]:
        """Entries of a team (of all teams for ``None``), newest first; only those older than ``before``, if given."""
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
        if team_id is not None:
            query = query.where(AuditRow.team_id == team_id)
        if before is not None:
            query = query.where(AuditRow.id < before)
        if target is not None:
            query = query.where(AuditRow.target == target)
        return [
            AuditEntry(r.id, r.at, r.team_id, r.token_id, r.token, r.role, r.request_id, r.action, r.target, r.detail)
            for r in self._session.scalars(query)
        ]
