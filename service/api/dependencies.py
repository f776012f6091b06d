"""Dependencies of routes: the caller, and the context of the use cases."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

from fastapi import Depends, Header, Path, Query, Request, Security
from fastapi.security import HTTPBearer

from ..context.context import Context
from ..domain.records import Principal, Role
from ..errors import (
    Changed,
    Conflict,
    Fault,
    Forbidden,
    InvalidStudy,
    NotFound,
    ServiceError,
    TooLarge,
    TooMany,
    TooSlow,
    Unauthorized,
    Unavailable,
)
from ..schemas.wire import Problem
from ..settings import is_loopback
from ..tenancy.tokens import anyone, authenticate, authenticate_session
from .limits import RateLimits

SESSION_COOKIE = "cdka_session"
_SAFE_METHODS = frozenset({"GET", "HEAD"})
# auto_error would answer in FastAPI's own form; ours is problem+json.
_bearer = HTTPBearer(auto_error=False, description="A token made with: cdka token create")

Id = Annotated[str, Path(max_length=128, pattern=r"^[A-Za-z0-9_-]+$")]
Limit = Annotated[int, Query(ge=1, le=200, description="Items of a page.")]
Cursor = Annotated[
    str | None, Query(max_length=64, pattern=r"^[0-9a-f]+$", description="The last page's ``next_cursor``.")
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Makes the call safe to repeat for a day: same key and body, same answer.",
    ),
]


async def context_of(request: Request) -> Context:
    """The server's context, as a dependency. Async, because it needs no thread."""
    return get_context(request)


def get_context(request: Request) -> Context:
    """The server's context."""
    return cast(Context, request.app.state.context)


ContextDep = Annotated[Context, Depends(context_of)]


def bearer_token(request: Request) -> str | None:
    """The request's token, valid or not."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret.strip() or None if scheme.lower() == "bearer" else None


def get_principal(request: Request, ctx: ContextDep, _: Annotated[Any, Security(_bearer)] = None) -> Principal:
    """The caller, by bearer token; for reading, also by the dashboard's session cookie.

    Raises:
        Unauthorized: neither is valid.
        TooMany: the caller has used up its rate.
    """
    limits = cast(RateLimits, request.app.state.limits)
    # The middleware has authenticated calls with a body.
    caller: Principal = getattr(request.state, "principal", None) or identify(request, ctx)
    if not caller.role.runs_trials and caller.token_id:
        limits.count_call(caller.token_id)
    request_id = getattr(request.state, "request_id", "")
    return Principal(caller.token_id, caller.team_id, caller.team, caller.role, caller.name, request_id)


def identify(request: Request, ctx: Context) -> Principal:
    """The principal of the request's token or session.

    Raises:
        Unauthorized: neither is valid.
        TooMany: the address has sent invalid ones too often.
        Forbidden: no tokens are asked for, and the request comes from another site.
    """
    limits = cast(RateLimits, request.app.state.limits)
    if ctx.settings.auth == "off":
        require_local(request)
        return anyone(ctx)
    address = request.client.host if request.client else "unknown"
    try:
        if (secret := bearer_token(request)) is not None:
            return authenticate(ctx, secret)
        cookie = request.cookies.get(SESSION_COOKIE)
        if cookie and request.method in _SAFE_METHODS:
            return authenticate_session(ctx, cookie)
    except Unauthorized:
        limits.count_refusal(address)
        raise
    raise Unauthorized("send a token: Authorization: Bearer TOKEN")


def require_local(request: Request) -> None:
    """Without tokens, take requests of this machine alone: of no site that a browser has open.

    Raises:
        Forbidden: the Host is another's, as after DNS rebinding, or a browser says that another site sent it.
    """
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if not is_loopback(host):
        raise Forbidden(f"without tokens (CDKA_AUTH=off) this server answers to localhost, not to {host!r}")
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site", "none")
    if site not in ("same-origin", "none") or (
        origin is not None and urlsplit(origin).netloc != request.headers["host"]
    ):
        raise Forbidden("without tokens (CDKA_AUTH=off) this server takes no requests from other sites")


def require(*roles: Role) -> Callable[[Principal], Awaitable[Principal]]:
    """A dependency that admits these roles, and admins.

    Raises:
        Forbidden: the caller has another role.
    """

    async def check(principal: Annotated[Principal, Depends(get_principal)]) -> Principal:
        if principal.role is not Role.ADMIN and principal.role not in roles:
            needed = ", ".join(sorted({*roles, Role.ADMIN}))
            raise Forbidden(f"a {principal.role} token may not do this; it takes: {needed}")
        return principal

    return check


Reader = Annotated[Principal, Depends(require(Role.MEMBER, Role.VIEWER))]
Writer = Annotated[Principal, Depends(require(Role.MEMBER))]
Worker = Annotated[Principal, Depends(require(Role.WORKER, Role.POOL))]
Admin = Annotated[Principal, Depends(require())]

_MEANINGS = {
    401: "No valid token",
    403: "The token's role does not allow the call",
    404: "Not there, or not in the caller's team",
    409: "The state of the resource forbids the call",
    412: "The resource is not what If-Match says",
    408: "The body did not come in time",
    413: "The body is too large",
    422: "The request is wrong; `errors` names every place",
    429: "Too many requests; see Retry-After",
    503: "The database is away or busy; see Retry-After",
}


_EXAMPLES: dict[int, ServiceError] = {
    401: Unauthorized("send a token: Authorization: Bearer TOKEN"),
    403: Forbidden("a viewer token may not do this; it takes: admin, member"),
    404: NotFound("there is no study 019b76db96487736823e7f5cb438eab4"),
    409: Conflict("a cancelled study cannot become paused; that state is final"),
    412: Changed("the study is at revision 3, not 2: read it again, then change it"),
    408: TooSlow("the request's body did not come in time"),
    413: TooLarge("the body is larger than 1,048,576 bytes, the most that this call takes"),
    422: InvalidStudy(
        "the study has 1 fault; nothing was stored",
        [Fault("#/search_space/r2/choices/1", "r2=7 does not divide d_in=384 of encoder.layer.0.attention.self.query")],
    ),
    429: TooMany("more than 1200 of these a minute; come back in 12 s"),
    503: Unavailable("the database does not answer; nothing was changed, try again"),
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the errors of a route, besides those of every route."""
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {
                "application/problem+json": {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": _EXAMPLES[status].problem(),
                }
            },
        }
        for status in sorted({401, 403, 408, 413, 422, 429, 503, *statuses})
    }


__all__ = [
    "SESSION_COOKIE",
    "Admin",
    "ContextDep",
    "Cursor",
    "Id",
    "IdempotencyKey",
    "Limit",
    "Problem",
    "Reader",
    "Worker",
    "Writer",
    "bearer_token",
    "get_context",
    "get_principal",
    "problems",
    "require",
]
