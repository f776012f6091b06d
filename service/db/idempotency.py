"""Answers to requests that may be repeated, in SQL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete
from sqlalchemy.orm import Session

from .models import IdempotencyRow


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """The encrypted answer to a request with an idempotency key, and the digest of that request."""

    request: str
    status: int
    content: str


class KeptAnswers:
    """Reads and writes kept answers in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, scope: str, key: str) -> KeptAnswer | None:
        """The answer kept for this caller's key."""
        row = self._session.get(IdempotencyRow, (scope, key))
        return None if row is None else KeptAnswer(row.request, row.status, row.content)

    def add(self, scope: str, key: str, answer: KeptAnswer, now: datetime) -> None:
        """Keep an answer. The pair (scope, key) is unique: a taken pair fails the flush."""
        self._session.add(
            IdempotencyRow(
                scope=scope,
                key=key,
                request=answer.request,
                status=answer.status,
                content=answer.content,
                created_at=now,
            )
        )
        self._session.flush()

    def forget_before(self, moment: datetime) -> None:
        """Remove answers older than ``moment``."""
        self._session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < moment))
