"""Tokens and browser sessions: authenticate callers."""

from __future__ import annotations

import hashlib
import logging
import secrets
from datetime import datetime, timedelta

from sqlalchemy.exc import IntegrityError

from ..context.context import Context
from ..db.audit import Audit
from ..db.retries import retried
from ..db.teams import Teams
from ..db.tokens import Tokens
from ..domain.ids import new_id
from ..domain.operation import AuditEntry, Team
from ..domain.records import Principal, Role, Token
from ..errors import Conflict, Fault, Forbidden, InvalidRequest, Unauthorized, Unavailable

_log = logging.getLogger(__name__)
TOKEN_PREFIX = "cdka_"  # noqa: S105  # a prefix is no secret; it lets scanners find leaked tokens
DEFAULT_TEAM = "default"
# A prefix and 32 bytes in base64.
SHORTEST_SECRET = 40
SESSION_TIME = timedelta(hours=12)
# Recording the last use on every call would make every read a write.
USE_RESOLUTION = timedelta(minutes=1)


def digest(secret: str) -> str:
    """SHA-256 of a secret, in hexadecimal. Secrets carry 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


# The principal of the server's own actions and of its command line.
SYSTEM = Principal("", "", DEFAULT_TEAM, Role.ADMIN, "system")


def create_token(
    ctx: Context,
    team: str,
    name: str,
    role: Role,
    expires_at: datetime | None = None,
    caller: Principal = SYSTEM,
) -> tuple[Token, str]:
    """Create a token. Returns it with its secret, which is not stored.

    Raises:
        NotFound: there is no such team.
        InvalidRequest: it would have expired already.
    """
    if expires_at is not None and expires_at <= ctx.clock():
        raise InvalidRequest(
            "the token would have expired already", [Fault("#/expires_at", "give a time in the future")]
        )
    return _make_token(ctx, team, name, role, expires_at, caller, "token.create")


@retried
def adopt_token(ctx: Context, team: str, name: str, role: Role, secret: str) -> bool:
    """Make a given secret the one valid token of that name and role; returns whether it is new.

    Earlier secrets under that name are revoked, so a deployment rotates tokens by replacing files.

    Raises:
        NotFound: there is no such team.
        InvalidRequest: the secret is too short to be one, or was revoked.
    """
    if not secret.startswith(TOKEN_PREFIX) or len(secret) < SHORTEST_SECRET:
        raise InvalidRequest(
            f"the {role} token has the wrong form; it must be {TOKEN_PREFIX} and 32 random bytes in base64 "
            "(docker/make-secrets)"
        )
    now = ctx.clock()
    with ctx.db.write() as session:
        tokens = Tokens(session)
        found = tokens.by_digest(digest(secret))
        if found is not None:
            if found.revoked_at is None and (found.role, role) == (Role.WORKER, Role.POOL):
                # A deployment's one worker token is now to serve all teams.
                tokens.change_role(found.id, role)
                Audit(session).record(SYSTEM, now, "token.role", found.id, role=role)
                return True
            if found.revoked_at is not None or found.role is not role:
                raise InvalidRequest(f"the {role} token was revoked or belongs to another role; create a new one")
            return False
        for old in tokens.list(None):
            if (old.name, old.role, old.team) == (name, role, team) and old.revoked_at is None:
                tokens.revoke(old.id, now)
        token = Token(new_id(now), Teams(session).named(team).id, team, name, role, now, None, None, None)
        tokens.add(token, digest(secret))
        Audit(session).record(SYSTEM, now, "token.adopt", token.id, name=name, role=role, team=team)
        return True


@retried
def _make_token(
    ctx: Context, team: str, name: str, role: Role, expires_at: datetime | None, caller: Principal, action: str
) -> tuple[Token, str]:
    now = ctx.clock()
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    with ctx.db.write() as session:
        token = Token(new_id(now), Teams(session).named(team).id, team, name, role, now, expires_at, None, None)
        Tokens(session).add(token, digest(secret))
        Audit(session).record(caller, now, action, token.id, name=name, role=role, team=team)
    return token, secret


@retried
def rotate_token(ctx: Context, caller: Principal, token_id: str, grace: timedelta) -> tuple[Token, str]:
    """Replace a token's secret; the old one stays valid for ``grace``.

    Raises:
        NotFound: there is no such token.
        Conflict: the token is revoked or expired.
    """
    now = ctx.clock()
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    with ctx.db.write() as session:
        tokens = Tokens(session)
        old = tokens.get(token_id)
        if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
            raise Conflict("the token is revoked or expired; make a new one")
        lifetime = None if old.expires_at is None else now + (old.expires_at - old.created_at)
        new = Token(new_id(now), old.team_id, old.team, old.name, old.role, now, lifetime, None, None)
        tokens.add(new, digest(secret))
        end = now + grace
        if old.expires_at is None or old.expires_at > end:
            tokens.expire(old.id, end)
        Audit(session).record(
            caller, now, "token.rotate", old.id, successor=new.id, grace_seconds=grace.total_seconds()
        )
    return new, secret


def anyone(ctx: Context) -> Principal:
    """The caller of a server without authentication: an admin of the default team."""
    with ctx.db.read() as session:
        found = Teams(session).find(DEFAULT_TEAM)
    return Principal("", "" if found is None else found.id, DEFAULT_TEAM, Role.ADMIN, "anyone")


@retried
def ensure_team(ctx: Context, name: str) -> None:
    """Create the team if it does not exist."""
    try:
        with ctx.db.write() as session:
            if Teams(session).find(name) is None:
                Teams(session).add(Team(new_id(ctx.clock()), name, ctx.clock()))
    except IntegrityError:
        # Another replica created it at the same moment.
        _log.info("team %s was made meanwhile", name)


def authenticate(ctx: Context, secret: str) -> Principal:
    """The principal that a token stands for.

    Raises:
        Unauthorized: the token is unknown, revoked or expired.
    """
    with ctx.db.look() as session:
        token = Tokens(session).by_digest(digest(secret))
    return _principal(ctx, token)


def authenticate_session(ctx: Context, cookie: str) -> Principal:
    """The principal that a browser session stands for.

    Raises:
        Unauthorized: the session or its token has ended.
    """
    with ctx.db.read() as session:
        token = Tokens(session).by_session(digest(cookie), ctx.clock())
    return _principal(ctx, token)


def _principal(ctx: Context, token: Token | None) -> Principal:
    now = ctx.clock()
    if token is None or token.revoked_at is not None or (token.expires_at is not None and token.expires_at <= now):
        raise Unauthorized("the token is not valid; make one with: cdka token create")
    if token.last_used_at is None or now - token.last_used_at > USE_RESOLUTION:
        try:
            with ctx.db.write() as session:
                Tokens(session).used(token.id, now)
        except Unavailable:
            # A failure to record the last use must not fail the request.
            _log.warning("the last use of token %s could not be written", token.id)
    return Principal(token.id, token.team_id, token.team, token.role, token.name)


def log_in(ctx: Context, secret: str) -> str:
    """Start a browser session for a token; returns the cookie's value.

    Raises:
        Unauthorized: the token is not valid.
        Forbidden: a worker's token has no access to the dashboard.
    """
    principal = authenticate(ctx, secret)
    if principal.role.runs_trials:
        raise Forbidden("a worker's token cannot open the dashboard; use a viewer's, member's or admin's")
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


@retried
def revoke_token(ctx: Context, caller: Principal, token_id: str) -> None:
    """Revoke a token immediately.

    Raises:
        NotFound: there is no such token.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        token = Tokens(session).get(token_id)
        Tokens(session).revoke(token_id, now)
        Audit(session).record(caller, now, "token.revoke", token_id, name=token.name)


def read_audit(
    ctx: Context, team_id: str | None, limit: int, before: str | None, target: str | None
) -> tuple[list[AuditEntry], str | None]:
    """A page of the audit log, newest first, and the cursor of the next page."""
    with ctx.db.read() as session:
        found = Audit(session).page(team_id, limit + 1, before, target)
    page = found[:limit]
    return page, page[-1].id if len(found) > limit else None
