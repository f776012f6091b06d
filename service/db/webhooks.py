"""Webhooks and their deliveries in SQL."""

from __future__ import annotations

import builtins
from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from ..domain.operation import Delivery, Webhook
from ..errors import NotFound
from .models import DeliveryRow, WebhookRow

PENDING, DELIVERED, GIVEN_UP = "pending", "delivered", "given_up"


def _record(row: WebhookRow) -> Webhook:
    return Webhook(row.id, row.team_id, row.url, row.events, row.secret, row.active, row.created_at)


def _delivery(row: DeliveryRow) -> Delivery:
    return Delivery(
        id=row.id,
        webhook_id=row.webhook_id,
        study_id=row.study_id,
        number=row.number,
        kind=row.kind,
        state=row.state,
        attempts=row.attempts,
        next_at=row.next_at,
        status=row.status,
        error=row.error,
        created_at=row.created_at,
        delivered_at=row.delivered_at,
        body=row.body,
    )


class Webhooks:
    """Reads and writes webhooks in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, webhook: Webhook) -> None:
        """Record a new webhook."""
        self._session.add(
            WebhookRow(
                id=webhook.id,
                team_id=webhook.team_id,
                url=webhook.url,
                events=webhook.events,
                secret=webhook.secret,
                active=webhook.active,
                created_at=webhook.created_at,
            )
        )
        self._session.flush()

    def change_secret(self, webhook_id: str, secret: str) -> None:
        """Store another secret."""
        self._session.execute(update(WebhookRow).where(WebhookRow.id == webhook_id).values(secret=secret))

    def get(self, webhook_id: str, team_id: str | None) -> Webhook:
        """The webhook; ``team_id`` restricts it to one team.

        Raises:
            NotFound: there is none in this team.
        """
        query = select(WebhookRow).where(WebhookRow.id == webhook_id)
        if team_id is not None:
            query = query.where(WebhookRow.team_id == team_id)
        row = self._session.scalars(query).one_or_none()
        if row is None:
            raise NotFound(f"there is no webhook {webhook_id}")
        return _record(row)

    def list(self, team_id: str | None) -> list[Webhook]:
        """Webhooks of a team (of all for ``None``)."""
        query = select(WebhookRow).order_by(WebhookRow.id)
        if team_id is not None:
            query = query.where(WebhookRow.team_id == team_id)
        return [_record(row) for row in self._session.scalars(query)]

    def remove(self, webhook_id: str) -> None:
        """Remove a webhook with its deliveries."""
        self._session.execute(delete(WebhookRow).where(WebhookRow.id == webhook_id))

    def deliveries(self, webhook_id: str, limit: int, before: str | None) -> builtins.list[Delivery]:
        """A webhook's deliveries, newest first; only those older than ``before``, if given."""
        query = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id)
        if before is not None:
            query = query.where(DeliveryRow.id < before)
        return [_delivery(r) for r in self._session.scalars(query.order_by(DeliveryRow.id.desc()).limit(limit))]

    def claim_due(
        self, now: datetime, until: datetime, limit: int, busy: Collection[str] = ()
    ) -> builtins.list[Delivery]:
        """Claim due deliveries for this sender until ``until``; none of ``busy`` teams.

        If a sender dies, its deliveries are sent again: receivers see each event at least once.
        """
        theirs = select(WebhookRow.id).where(WebhookRow.team_id.in_(busy))
        others = [DeliveryRow.webhook_id.not_in(theirs)] if busy else []
        query = (
            select(DeliveryRow)
            .where(DeliveryRow.state == PENDING, DeliveryRow.next_at <= now, *others)
            .order_by(DeliveryRow.next_at, DeliveryRow.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        found = [_delivery(row) for row in self._session.scalars(query)]
        if found:
            self._session.execute(
                update(DeliveryRow).where(DeliveryRow.id.in_([d.id for d in found])).values(next_at=until)
            )
        return found

    def settle(self, delivery_id: str, **values: Any) -> None:
        """Record the outcome of a delivery attempt."""
        self._session.execute(update(DeliveryRow).where(DeliveryRow.id == delivery_id).values(**values))

    def forget_before(self, moment: datetime) -> None:
        """Remove settled deliveries that were created before ``moment``."""
        self._session.execute(delete(DeliveryRow).where(DeliveryRow.created_at < moment, DeliveryRow.state != PENDING))
