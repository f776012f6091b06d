"""Events of studies in SQL, and their deliveries to webhooks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime
from typing import cast

from sqlalchemy import Table, bindparam, delete, insert, select
from sqlalchemy.orm import Session

from ..domain.ids import new_id
from ..domain.records import Event
from .models import DeliveryRow, EventRow, WebhookRow

# Built once: these run with every change of a trial.
_INSERT = insert(cast(Table, EventRow.__table__))
_HOOKS = select(WebhookRow.id, WebhookRow.events).where(
    WebhookRow.team_id == bindparam("team"), WebhookRow.active.is_(True)
)


def append_events(session: Session, events: Sequence[Event]) -> None:
    """Record events in the transaction that made them happen."""
    rows = [{"study_id": e.study_id, "number": e.number, "kind": e.kind, "data": e.data, "at": e.at} for e in events]
    session.connection().execute(_INSERT, rows)


def add_deliveries(session: Session, team_id: str, events: Sequence[Event]) -> None:
    """Record the deliveries of events to the team's webhooks, in the same transaction."""
    hooks = session.connection().execute(_HOOKS, {"team": team_id}).all()
    for event, (webhook_id, wanted) in itertools.product(events, hooks):
        if event.kind not in wanted:
            continue
        body = {
            "study_id": event.study_id,
            "number": event.number,
            "kind": event.kind,
            "at": event.at.isoformat(),
            "data": event.data,
        }
        session.add(
            DeliveryRow(
                id=new_id(event.at),
                webhook_id=webhook_id,
                study_id=event.study_id,
                number=event.number,
                kind=event.kind,
                body=body,
                state="pending",
                attempts=0,
                next_at=event.at,
                created_at=event.at,
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
