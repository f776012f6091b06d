"""Connections that stand still are cut: of a caller that sends no request, or does not read its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# From the connection, or a request's first byte, to the end of its headers.
HEADER_SECONDS = 20.0
# Without a byte of a body, and for the whole of it.
BODY_IDLE_SECONDS = 30.0
BODY_SECONDS = 300.0
# Without the caller taking what lies ready for it.
STALLED_SECONDS = 60.0


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol, with limits of time on headers and on answers that nobody reads.

    uvicorn itself limits the time between two requests of a connection, and no other.
    """

    header_seconds = HEADER_SECONDS
    stalled_seconds = STALLED_SECONDS
    _headers_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect headers."""
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Take data; expect headers if it ended within them."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._expect_headers()
        else:
            self._expect_no_headers()

    def on_response_complete(self) -> None:
        """Go on with a request that came meanwhile."""
        super().on_response_complete()
        if self.conn.their_state is not h11.IDLE:
            self._expect_no_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._expect_no_headers()
        self._expect_no_reading()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The caller reads more slowly than the answer is made."""
        super().pause_writing()
        if self._reading_due is None:
            self._reading_due = self.loop.call_later(self.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The caller has read on."""
        self._expect_no_reading()
        super().resume_writing()

    def _expect_headers(self) -> None:
        if self._headers_due is None:
            self._headers_due = self.loop.call_later(self.header_seconds, self.transport.abort)

    def _expect_no_headers(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _expect_no_reading(self) -> None:
        if self._reading_due is not None:
            self._reading_due.cancel()
            self._reading_due = None


# Arguments of ``uvicorn.run`` and ``uvicorn.Config`` for the API.
SERVER_OPTIONS: Mapping[str, Any] = {
    "http": BoundedProtocol,
    # See BehindProxy.
    "proxy_headers": False,
    "server_header": False,
    "access_log": False,
    "log_config": None,
}
