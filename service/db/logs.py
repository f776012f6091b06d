"""Output of attempts in SQL: pieces of text at their position in an attempt's whole output."""

from __future__ import annotations

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from .models import LogRow


class TrialLogs:
    """Reads and writes the logs of trials in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def end(self, trial_id: str, attempt: int) -> int:
        """The end of an attempt's stored output, in characters."""
        query = (
            select(LogRow.start + func.length(LogRow.text))
            .where(LogRow.trial_id == trial_id, LogRow.attempt == attempt)
            .order_by(LogRow.start.desc())
            .limit(1)
        )
        return self._session.scalar(query) or 0

    def add(self, trial_id: str, attempt: int, start: int, text: str) -> None:
        """Record text that begins at ``start``."""
        self._session.execute(insert(LogRow).values(trial_id=trial_id, attempt=attempt, start=start, text=text))

    def forget_before(self, trial_id: str, attempt: int, start: int) -> None:
        """Remove the pieces that begin before ``start``."""
        mine = (LogRow.trial_id == trial_id, LogRow.attempt == attempt)
        self._session.execute(delete(LogRow).where(*mine, LogRow.start < start))

    def pieces(self, trial_id: str, attempt: int, after: int) -> list[tuple[int, str]]:
        """Pieces that reach beyond ``after``, in order, each with its start."""
        query = (
            select(LogRow.start, LogRow.text)
            .where(LogRow.trial_id == trial_id, LogRow.attempt == attempt)
            .where(LogRow.start + func.length(LogRow.text) > after)
            .order_by(LogRow.start)
        )
        return [(row.start, row.text) for row in self._session.execute(query)]
