"""Serve behind a proxy: who is calling, and below which path."""

from __future__ import annotations

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ..settings import PREFIX

_HEADER = b"x-forwarded-prefix"


def prefix_of(request: Request) -> str:
    """The path below which the caller sees the service: empty, or such as ``/cdka``."""
    prefix: str = getattr(request.state, "prefix", "")
    return prefix


class BehindProxy:
    """Takes a proxy's word for the caller's address, the scheme, and the prefix of all paths.

    The proxy may leave the prefix in a request's path or take it out. Redirects lead back below the prefix.

    Args:
        app: what is served, which sees paths without the prefix.
        root_path: the prefix; a trusted proxy's ``X-Forwarded-Prefix`` replaces it.
        trusted: addresses or networks of proxies with commas between them, or ``*``. Only their ``X-Forwarded-*``
            headers are used.
    """

    def __init__(self, app: ASGIApp, root_path: str, trusted: str) -> None:
        self._app = ProxyHeadersMiddleware(app, trusted)  # type: ignore[arg-type]
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI 3)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)  # type: ignore[arg-type]
            return
        prefix = self._prefix(scope)
        scope = {**scope, "state": {**scope.get("state", {}), "prefix": prefix}}
        if prefix and (scope["path"] == prefix or scope["path"].startswith(prefix + "/")):
            scope["path"] = scope["path"][len(prefix) :] or "/"
            scope["raw_path"] = scope["path"].encode()

        async def sending(message: Message) -> None:
            if prefix and message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                location = headers.get("location", "")
                if location.startswith("/") and not location.startswith("//"):
                    headers["location"] = prefix + location
            await send(message)

        await self._app(scope, receive, sending)  # type: ignore[arg-type]

    def _prefix(self, scope: Scope) -> str:
        client = scope.get("client")
        if client is not None and client[0] in self._app.trusted_hosts:
            given = [value for name, value in scope["headers"] if name == _HEADER]
            said = given[-1].decode("latin-1").rstrip("/") if given else ""
            if said and PREFIX.fullmatch(said):
                return said
        return self._root_path
