"""Tokens and browser sessions in SQL. Only digests of secrets are stored."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from ..domain.records import Role, Token
from ..errors import NotFound
from .models import SessionRow, TeamRow, TokenRow


def _record(row: TokenRow, team: str) -> Token:
    return Token(
        id=row.id,
        team_id=row.team_id,
        team=team,
        name=row.name,
        role=Role(row.role),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )


class Tokens:
    """Reads and writes tokens and sessions in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, token: Token, digest: str) -> None:
        """Record a new token by the digest of its secret."""
        self._session.add(
            TokenRow(
                id=token.id,
                team_id=token.team_id,
                name=token.name,
                role=token.role,
                digest=digest,
                created_at=token.created_at,
                expires_at=token.expires_at,
            )
        )

    def by_digest(self, digest: str) -> Token | None:
        """The token with this digest, even if it is expired or revoked."""
        query = select(TokenRow, TeamRow.name).join(TeamRow, TeamRow.id == TokenRow.team_id)
        found = self._session.execute(query.where(TokenRow.digest == digest)).one_or_none()
        return None if found is None else _record(found[0], found[1])

    def by_session(self, digest: str, now: datetime) -> Token | None:
        """The token of a browser session; ``None`` if the session has expired."""
        query = (
            select(TokenRow, TeamRow.name)
            .join(TeamRow, TeamRow.id == TokenRow.team_id)
            .join(SessionRow, SessionRow.token_id == TokenRow.id)
            .where(SessionRow.digest == digest, SessionRow.expires_at > now)
        )
        found = self._session.execute(query).one_or_none()
        return None if found is None else _record(found[0], found[1])

    def list(self, team_id: str | None) -> list[Token]:
        """Tokens of a team (of all for ``None``)."""
        query = select(TokenRow, TeamRow.name).join(TeamRow, TeamRow.id == TokenRow.team_id).order_by(TokenRow.id)
        if team_id is not None:
            query = query.where(TokenRow.team_id == team_id)
        return [_record(row, team) for row, team in self._session.execute(query)]

    def change_role(self, token_id: str, role: Role) -> None:
        """Give a token another role."""
        self._session.execute(update(TokenRow).where(TokenRow.id == token_id).values(role=role))

    def get(self, token_id: str, team_id: str | None = None) -> Token:
        """The token; ``team_id`` restricts it to one team.

        Raises:
            NotFound: there is no such token.
        """
        query = select(TokenRow, TeamRow.name).join(TeamRow, TeamRow.id == TokenRow.team_id)
        query = query.where(TokenRow.id == token_id)
        if team_id is not None:
            query = query.where(TokenRow.team_id == team_id)
        found = self._session.execute(query.execution_options(populate_existing=True)).one_or_none()
        if found is None:
            raise NotFound(f"there is no token {token_id}")
        return _record(found[0], found[1])

    def revoke(self, token_id: str, now: datetime) -> None:
        """Revoke a token and end its browser sessions."""
        self._session.execute(update(TokenRow).where(TokenRow.id == token_id).values(revoked_at=now))
        self._session.execute(delete(SessionRow).where(SessionRow.token_id == token_id))

    def expire(self, token_id: str, at: datetime) -> None:
        """Set the time at which a token expires."""
        self._session.execute(update(TokenRow).where(TokenRow.id == token_id).values(expires_at=at))

    def forget_sessions(self, moment: datetime) -> None:
        """Remove sessions that expired before ``moment``."""
        self._session.execute(delete(SessionRow).where(SessionRow.expires_at < moment))

    def used(self, token_id: str, now: datetime) -> None:
        """Record when a token was last used."""
        self._session.execute(update(TokenRow).where(TokenRow.id == token_id).values(last_used_at=now))

    def add_session(self, digest: str, token_id: str, now: datetime, expires_at: datetime) -> None:
        """Record a browser's login."""
        self._session.add(SessionRow(digest=digest, token_id=token_id, created_at=now, expires_at=expires_at))

    def end_session(self, digest: str) -> None:
        """Log a browser out."""
        self._session.execute(delete(SessionRow).where(SessionRow.digest == digest))
