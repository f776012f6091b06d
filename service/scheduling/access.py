"""Tokens, teams and browser sessions: who is calling, and what they may do."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timedelta

from ..db.tokens import Tokens
from ..domain.ids import new_id
from ..domain.records import Principal, Role, Token
from ..errors import Forbidden, NotFound, Unauthorized
from .context import Context

TOKEN_PREFIX = "cdka_"  # noqa: S105  # a prefix is no secret; it lets scanners find leaked tokens
DEFAULT_TEAM = "default"
SESSION_TIME = timedelta(hours=12)
# Writing the last use at every call would make every read a write.
USE_RESOLUTION = timedelta(minutes=1)


def digest(secret: str) -> str:
    """SHA-256 of a secret, in hexadecimal. Secrets carry 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create_token(
    ctx: Context, team: str, name: str, role: Role, expires_at: datetime | None = None
) -> tuple[Token, str]:
    """A new token and its secret, which is shown this once and never stored.

    Raises:
        NotFound: there is no such team.
    """
    now = ctx.clock()
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    with ctx.db.write() as session:
        tokens = Tokens(session)
        token = Token(new_id(now), tokens.team_by_name(team), team, name, role, now, expires_at, None, None)
        tokens.add(token, digest(secret))
    return token, secret


def ensure_team(ctx: Context, name: str) -> None:
    """Make the team if there is none of that name."""
    with ctx.db.write() as session:
        tokens = Tokens(session)
        try:
            tokens.team_by_name(name)
        except NotFound:
            tokens.add_team(new_id(ctx.clock()), name, ctx.clock())


def authenticate(ctx: Context, secret: str) -> Principal:
    """The principal that a token stands for.

    Raises:
        Unauthorized: the token is unknown, revoked or expired.
    """
    with ctx.db.read() as session:
        token = Tokens(session).by_digest(digest(secret))
    return _principal(ctx, token)


def authenticate_session(ctx: Context, cookie: str) -> Principal:
    """The principal that a browser session stands for.

    Raises:
        Unauthorized: the session or its token is over.
    """
    with ctx.db.read() as session:
        token = Tokens(session).by_session(digest(cookie), ctx.clock())
    return _principal(ctx, token)


def _principal(ctx: Context, token: Token | None) -> Principal:
    now = ctx.clock()
    if token is None or token.revoked_at is not None or (token.expires_at is not None and token.expires_at <= now):
        raise Unauthorized("the token is not valid; make one with: cdka token create")
    if token.last_used_at is None or now - token.last_used_at > USE_RESOLUTION:
        with ctx.db.write() as session:
            Tokens(session).used(token.id, now)
    return Principal(token.id, token.team_id, token.team, token.role, token.name)


def log_in(ctx: Context, secret: str) -> str:
    """Start a browser session for a token; returns the cookie's value.

    Raises:
        Unauthorized: the token is not valid.
        Forbidden: a worker's token opens no dashboard.
    """
    principal = authenticate(ctx, secret)
    if principal.role is Role.WORKER:
        raise Forbidden("a worker's token opens no dashboard; use a viewer's, member's or admin's")
    cookie = secrets.token_urlsafe(32)
    now = ctx.clock()
    with ctx.db.write() as session:
        Tokens(session).add_session(digest(cookie), principal.token_id, now, now + SESSION_TIME)
    return cookie


def log_out(ctx: Context, cookie: str) -> None:
    """End a browser session."""
    with ctx.db.write() as session:
        Tokens(session).end_session(digest(cookie))


def list_tokens(ctx: Context, team_id: str | None) -> list[Token]:
    """Tokens of a team, without their secrets."""
    with ctx.db.read() as session:
        return Tokens(session).list(team_id)


def revoke_token(ctx: Context, token_id: str) -> None:
    """Make a token invalid at once.

    Raises:
        NotFound: there is no such token.
    """
    with ctx.db.write() as session:
        Tokens(session).revoke(token_id, ctx.clock())
