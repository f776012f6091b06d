"""Events of studies in SQL, and their deliveries to webhooks."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Table, bindparam, delete, insert, select
from sqlalchemy.orm import Session

from ..domain.ids import new_id
from ..domain.records import Event
from ..domain.states import EventKind
from .models import DeliveryRow, EventRow, WebhookRow

# Built once: these run with every change of a trial.
_INSERT = insert(cast(Table, EventRow.__table__))
_HOOKS = select(WebhookRow.id, WebhookRow.events).where(
    WebhookRow.team_id == bindparam("team"), WebhookRow.active.is_(True)
)


def append_event(
    session: Session, study_id: str, number: int, kind: EventKind, at: datetime, data: Mapping[str, Any]
) -> None:
    """Record an event in the transaction that made it happen."""
    row = {"study_id": study_id, "number": number, "kind": kind, "data": dict(data), "at": at}
    session.connection().execute(_INSERT, row)


def add_deliveries(
    session: Session, study_id: str, team_id: str, number: int, kind: EventKind, at: datetime, data: Mapping[str, Any]
) -> None:
    """Record an event's deliveries to the team's webhooks, in the same transaction."""
    for webhook_id, wanted in session.connection().execute(_HOOKS, {"team": team_id}):
        if kind not in wanted:
            continue
        body = {"study_id": study_id, "number": number, "kind": kind, "at": at.isoformat(), "data": dict(data)}
        session.add(
            DeliveryRow(
                id=new_id(at),
                webhook_id=webhook_id,
                study_id=study_id,
                number=number,
                kind=kind,
                body=body,
                state="pending",
                attempts=0,
                next_at=at,
                created_at=at,
            )
        )


class Events:
    """Reads events in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def after(self, study_id: str, number: int, limit: int = 500) -> list[Event]:
        """The events of a study after the given number, in order."""
        query = (
            select(EventRow)
            .where(EventRow.study_id == study_id, EventRow.number > number)
            .order_by(EventRow.number)
            .limit(limit)
        )
        return [Event(r.study_id, r.number, r.kind, r.at, r.data) for r in self._session.scalars(query)]

    def forget_before(self, moment: datetime) -> int:
        """Remove events older than ``moment``; returns how many."""
        gone = self._session.scalars(delete(EventRow).where(EventRow.at < moment).returning(EventRow.number))
        return len(gone.all())
