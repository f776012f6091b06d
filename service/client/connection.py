"""Calls to a server: retried where that is safe; problems are raised as ``service.errors``."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import httpx
from httpx_sse import SSEError, connect_sse
from pydantic import BaseModel
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from ..errors import ServiceError, TooMany, Unavailable, from_problem
from ..schemas.wire import Page

API = "/api/v1"
Model = TypeVar("Model", bound=BaseModel)
# Idempotent methods, which may be retried.
_REPEATABLE = frozenset({"GET", "PUT", "DELETE"})
LONGEST_PAUSE = 5.0
# Longest Retry-After that is waited for.
LONGEST_RETRY_AFTER = 60
STREAM_TIMEOUT = 60.0
_JITTER = wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE)


class Connection:
    """One connection to a server.

    Calls raise the server's own errors (``service.errors``), rebuilt from its problems. A server that cannot be
    reached is ``Unavailable``; calls that change nothing when repeated are tried again before that, and so are POSTs
    that carry an idempotency key.

    Args:
        server_url: where the server listens.
        token: the bearer token; ``None`` for a server without authentication.
        timeout: seconds to wait for an answer.
        attempts: how often a repeatable call is tried.
        transport: what carries the requests; tests put an ASGI application here.
    """

    def __init__(
        self,
        server_url: str,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        attempts: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=server_url, headers=headers, timeout=timeout, transport=transport)
        self._attempts = attempts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeat: bool = False,
    ) -> Any:
        attempts = self._attempts if repeat or method in _REPEATABLE else 1
        retrying = Retrying(
            retry=retry_if_exception(_may_pass), stop=stop_after_attempt(attempts), wait=_pause, reraise=True
        )
        return retrying(self._once, method, path, body, params, headers)

    def _post(self, path: str, body: Any = None, params: Mapping[str, Any] | None = None) -> Any:
        """A POST with an idempotency key, so that retries have one effect."""
        headers = {"Idempotency-Key": uuid4().hex}
        return self._call("POST", API + path, body=body, params=params, headers=headers, repeat=True)

    def _once(
        self,
        method: str,
        path: str,
        body: Any,
        params: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        with self._translated():
            response = self._http.request(method, path, json=body, params=params, headers=headers)
        if response.status_code == 204:
            return None
        if response.is_success:
            return _content(response)
        raise _error(response)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise Unavailable(f"the server at {self._http.base_url} cannot be reached: {error}") from error

    def _get(self, model: type[Model], path: str, **params: Any) -> Model:
        given = {k: v for k, v in params.items() if v is not None}
        return model.model_validate(self._call("GET", API + path, params=given))

    def _pages(self, model: type[Model], path: str, limit: int = 200, **params: Any) -> Iterator[Model]:
        cursor = None
        while True:
            page = self._get(Page[model], path, limit=limit, cursor=cursor, **params)  # type: ignore[valid-type]
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def _download(self, path: str, file: Path, **params: Any) -> Path:
        """Write a response to ``file``, which appears under its name when it is complete."""
        part = file.with_name(file.name + ".part")
        with self._translated(), self._http.stream("GET", API + path, params=params) as response:
            if not response.is_success:
                response.read()
                raise _error(response)
            with part.open("wb") as target:
                for piece in response.iter_bytes():
                    target.write(piece)
        part.replace(file)
        return file

    def _stream(self, model: type[Model], path: str, after: int) -> Iterator[Model]:
        """Server-Sent Events; a broken stream is resumed after the last event, until the server ends it."""
        failures = 0
        while True:
            try:
                with (
                    self._translated(),
                    connect_sse(
                        self._http,
                        "GET",
                        API + path,
                        headers={"Last-Event-ID": str(after)},
                        timeout=httpx.Timeout(STREAM_TIMEOUT, connect=10.0),
                    ) as source,
                ):
                    if not source.response.is_success:
                        source.response.read()
                        raise _error(source.response)
                    for event in source.iter_sse():
                        failures = 0
                        if event.data:
                            yield model.model_validate_json(event.data)
                            after = int(event.id)
                return
            except (Unavailable, SSEError) as error:
                failures += 1
                if failures > self._attempts:
                    raise Unavailable(f"the event stream broke and cannot be taken up: {error}") from error
                # Tenacity repeats functions; this generator counts failures since the last event.
                time.sleep(random.uniform(0, min(LONGEST_PAUSE, 0.25 * 2**failures)))


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed soon."""
    return isinstance(error, Unavailable) or (isinstance(error, TooMany) and error.retry_after <= LONGEST_RETRY_AFTER)


def _pause(state: RetryCallState) -> float:
    """Seconds until the next attempt: what the server asked for, and jitter that spreads clients of a lost server."""
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after if isinstance(error, TooMany) else 0.0
    return asked + _JITTER(state)


def _content(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return {}


def _error(response: httpx.Response) -> ServiceError:
    content = _content(response)
    problem = content if isinstance(content, dict) else {}
    if response.status_code in (502, 503, 504):
        return Unavailable(problem.get("detail") or f"the server answered {response.status_code}")
    error = from_problem(problem, response.status_code)
    if isinstance(error, TooMany):
        error.retry_after = int(response.headers.get("retry-after", "1"))
    return error
