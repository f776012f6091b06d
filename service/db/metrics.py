"""Reported metrics in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from ..domain.records import MetricPoint
from .models import MetricRow
from .upserts import insert_ignoring

_ROWS_A_STATEMENT = 500


class Metrics:
    """Reads and writes metric values in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, trial_id: str, points: Sequence[MetricPoint]) -> list[tuple[str, int]]:
        """Record metric values. Keeps existing ones (of a repeated report). Returns name and step of the new ones."""
        if not points:
            return []
        rows = [
            {"trial_id": trial_id, "name": p.name, "step": p.step, "value": p.value, "reported_at": p.reported_at}
            for p in points
        ]
        added: list[tuple[str, int]] = []
        # Databases limit the number of values in one statement.
        for start in range(0, len(rows), _ROWS_A_STATEMENT):
            query = insert_ignoring(self._session, MetricRow).values(rows[start : start + _ROWS_A_STATEMENT])
            found = self._session.execute(query.returning(MetricRow.name, MetricRow.step))
            added += [(name, step) for name, step in found]
        return added

    def count(self, trial_id: str) -> int:
        """How many values a trial has."""
        return self._session.scalar(select(func.count()).where(MetricRow.trial_id == trial_id)) or 0

    def forget(self, trial_id: str) -> None:
        """Remove the reports of earlier attempts, because the trial starts from the beginning."""
        self._session.execute(delete(MetricRow).where(MetricRow.trial_id == trial_id))

    def of_trial(self, trial_id: str) -> list[MetricPoint]:
        """Every reported value of a trial, by step and name."""
        query = (
            select(MetricRow.step, MetricRow.name, MetricRow.value, MetricRow.reported_at)
            .where(MetricRow.trial_id == trial_id)
            .order_by(MetricRow.step, MetricRow.name)
        )
        return [MetricPoint(*row) for row in self._session.execute(query)]
