"""The SDK against an application in the same process, for tests of the service and of programs that use the SDK."""

from __future__ import annotations

import httpx


class AppTransport(httpx.BaseTransport):
    """Carries the SDK's requests into an application: ``Client(url, token, transport=AppTransport(TestClient(app)))``.

    Args:
        http: a client of the application, such as Starlette's ``TestClient``.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See ``httpx.BaseTransport``."""
        answer = self._http.request(
            request.method, str(request.url), content=request.read(), headers=dict(request.headers)
        )
        return httpx.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)
