"""Middleware of every request: id, log line, size limit, timing and security headers."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..domain.records import Principal, Role
from ..errors import Forbidden, TooLarge, TooMany, TooSlow, Unauthorized, Unavailable
from .connections import BODY_IDLE_SECONDS, BODY_SECONDS
from .errors import problem_response
from .metrics import Metrics

_log = logging.getLogger("service.access")
# Short and plain request ids of callers are kept; others are replaced.
_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
API = "/api/v1"
# Probes and static files are counted but not logged.
_QUIET = ("/healthz", "/readyz", "/metrics", "/static/")
current_request_id: ContextVar[str] = ContextVar("request_id", default="")

# Plotly sets styles on elements and exports pictures as blobs; everything else is same-origin.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
HSTS = "max-age=31536000"


# Bodies of callers; results of workers may be as large as CDKA_MAX_BODY_BYTES, their reports and logs twice this.
SMALL_BODY = 1 << 20
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_RESULT = re.compile(rf"{API}/leases/[^/]+/result")


class RequestMiddleware:
    """Pure ASGI, so that streams pass through and context reaches the handlers.

    A call that may have a body is authenticated before a byte of it is read: parsing holds the event loop.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        max_body_bytes: int,
        identify: Callable[[Request], Principal],
        body_seconds: float = BODY_SECONDS,
        body_idle_seconds: float = BODY_IDLE_SECONDS,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._identify = identify
        self._body_seconds = body_seconds
        self._body_idle_seconds = body_idle_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI 3)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"] if name in (b"x-request-id", b"content-length")}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.match(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        current_request_id.set(request_id)
        began, status, started = time.perf_counter(), 500, False

        async def sending(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                self._finish_headers(MutableHeaders(scope=message), scope, request_id)
            await send(message)

        taken, most, whole = 0, SMALL_BODY, False
        body_due = time.monotonic() + self._body_seconds

        async def receiving() -> Message:
            nonlocal taken, whole
            # After the body there comes nothing but the caller's leaving, for which streams wait.
            message = await (receive() if whole else _in_time(receive, self._body_idle_seconds, body_due))
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > most:
                    raise _too_large(most)
            whole = not message.get("more_body", False)
            return message

        try:
            principal = await self._authenticated(scope)
            most = self._largest_body(scope, principal)
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length) > most:
                raise _too_large(most)
            await self._app(scope, receiving, sending)
        except (TooLarge, TooSlow, Unauthorized, Forbidden, TooMany, Unavailable) as error:
            if started:
                raise
            response = problem_response(error)
            response.headers["Connection"] = "close"
            await response(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - began
            self._metrics.count_request(scope["method"], _template(scope), status, seconds)
            if not scope["path"].startswith(_QUIET):
                fields = {
                    "method": scope["method"],
                    # Without the query, which may hold a caller's data.
                    "path": scope["path"],
                    "status": status,
                    "ms": round(seconds * 1000, 1),
                    "client": scope["client"][0] if scope.get("client") else None,
                }
                _log.info("%(method)s %(path)s %(status)d", fields, extra=fields)

    async def _authenticated(self, scope: Scope) -> Principal | None:
        """The caller of a call that may have a body; kept in the request's state, so that it is not asked twice."""
        if scope["method"] not in _BODY_METHODS or not scope["path"].startswith(API + "/"):
            return None
        principal = await run_in_threadpool(self._identify, Request(scope))
        scope["state"]["principal"] = principal
        return principal

    def _largest_body(self, scope: Scope, principal: Principal | None) -> int:
        small = min(SMALL_BODY, self._max_body_bytes)
        if principal is None or not (principal.role.runs_trials or principal.role is Role.ADMIN):
            return small
        if _RESULT.fullmatch(scope["path"]):
            return self._max_body_bytes
        return min(2 * SMALL_BODY, self._max_body_bytes) if scope["path"].startswith(f"{API}/leases/") else small

    def _finish_headers(self, headers: MutableHeaders, scope: Scope, request_id: str) -> None:
        headers["X-Request-Id"] = request_id
        for name, value in SECURITY_HEADERS.items():
            headers.setdefault(name, value)
        if scope["scheme"] == "https":
            headers.setdefault("Strict-Transport-Security", HSTS)
        headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        if not scope["path"].startswith("/static/"):
            headers.setdefault("Cache-Control", "no-store")


def _template(scope: Scope) -> str:
    """The path template: ids in labels would create a time series per study."""
    path = getattr(scope.get("route"), "path", None)
    if not isinstance(path, str):
        return "static" if scope["path"].startswith("/static/") else "unmatched"
    # FastAPI's routes know their path without the prefix that they are included under.
    return API + path if scope["path"].startswith(API + "/") and not path.startswith(API) else path


async def _in_time(receive: Receive, idle_seconds: float, due: float) -> Message:
    """The next part of a body.

    Raises:
        TooSlow: it does not come in time.
    """
    try:
        async with asyncio.timeout(max(0.0, min(idle_seconds, due - time.monotonic()))):
            return await receive()
    except TimeoutError:
        raise TooSlow("the request's body did not come in time") from None


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"the body is larger than {most:,} bytes, the most that this call takes")
