"""Who is calling, and the context of the use cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, cast

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from ..domain.records import Principal, Role
from ..errors import Forbidden, Unauthorized
from ..scheduling.access import DEFAULT_TEAM, authenticate, authenticate_session
from ..scheduling.context import Context
from ..schemas.common import Problem

SESSION_COOKIE = "cdka_session"
_SAFE_METHODS = frozenset({"GET", "HEAD"})
# auto_error would answer in FastAPI's own form; ours is problem+json.
_bearer = HTTPBearer(auto_error=False, description="A token made with: cdka token create")


def get_context(request: Request) -> Context:
    """The server's context."""
    return cast(Context, request.app.state.context)


ContextDep = Annotated[Context, Depends(get_context)]


def get_principal(request: Request, ctx: ContextDep, _: Annotated[Any, Security(_bearer)] = None) -> Principal:
    """The caller, by bearer token; for reading also by the dashboard's session cookie.

    Raises:
        Unauthorized: neither is valid.
    """
    if ctx.settings.auth == "off":
        return Principal("", "", DEFAULT_TEAM, Role.ADMIN, "anyone")
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return authenticate(ctx, secret.strip())
    cookie = request.cookies.get(SESSION_COOKIE)
    if cookie and request.method in _SAFE_METHODS:
        return authenticate_session(ctx, cookie)
    raise Unauthorized("send a token: Authorization: Bearer TOKEN")


def require(*roles: Role) -> Callable[[Principal], Principal]:
    """A dependency that admits these roles (and admins, who may do all).

    Raises:
        Forbidden: the caller has another role.
    """

    def check(principal: Annotated[Principal, Depends(get_principal)]) -> Principal:
        if principal.role is not Role.ADMIN and principal.role not in roles:
            needed = ", ".join(sorted({*roles, Role.ADMIN}))
            raise Forbidden(f"a {principal.role} token may not do this; it takes: {needed}")
        return principal

    return check


Reader = Annotated[Principal, Depends(require(Role.MEMBER, Role.VIEWER))]
Writer = Annotated[Principal, Depends(require(Role.MEMBER))]
Worker = Annotated[Principal, Depends(require(Role.WORKER))]
Admin = Annotated[Principal, Depends(require())]


def scope(principal: Principal) -> str | None:
    """The team whose rows the caller may see; ``None`` (all) for an admin."""
    return None if principal.role is Role.ADMIN else principal.team_id


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the errors that a route may answer with; 401, 403, 422 and 503 go without saying."""
    entry = {"model": Problem, "content": {"application/problem+json": {}}}
    return dict.fromkeys((401, 403, *statuses, 422, 503), entry)
