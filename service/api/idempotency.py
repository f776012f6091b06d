"""POST under an ``Idempotency-Key``: a repeated request has one effect and gets the same answer.

Effect and answer commit in one transaction, so a crash leaves both or neither. Answers are kept for a day, encrypted
under the caller's token, which is not stored.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio import CancelScope, CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from sqlalchemy.exc import IntegrityError

from ..context.context import Context
from ..db.idempotency import KeptAnswer, KeptAnswers
from ..errors import Conflict, KeyReused
from .dependencies import bearer_token, get_context

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
HEADER = "idempotency-key"
REPLAYED = "Idempotency-Replayed"
_KEPT_HEADERS = ("content-type", "location", "etag")


class IdempotentRoute(APIRoute):
    """A route whose POST may be repeated under a key."""

    def get_route_handler(self) -> Handler:
        """The handler, around FastAPI's own."""
        original = super().get_route_handler()

        async def handle(request: Request) -> Response:
            key = request.headers.get(HEADER)
            # FastAPI rejects a malformed key.
            if request.method != "POST" or key is None or not (0 < len(key) <= 255 and key.isascii()):
                return await original(request)
            return await _once(request, key, original)

        return handle


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A request under a key: whose key it is, what was asked, and the cipher of its answer."""

    scope: str
    key: str
    digest: str
    cipher: Fernet


async def _once(request: Request, key: str, handle: Handler) -> Response:
    """Answer from what is kept, or handle the request and keep the answer in the same transaction."""
    ctx = get_context(request)
    attempt = await _attempt(request, key)
    # The middleware has authenticated the call: one whose access was revoked gets no stored answer.
    if (kept := await run_in_threadpool(_find, ctx, attempt)) is not None:
        return _replay(kept, attempt)
    try:
        async with _unit_of_work(ctx) as commit:
            response = await handle(request)
            if response.status_code < 300:
                await _in_own_thread(_keep, ctx, attempt, response)
                await commit()
            return response
    except (IntegrityError, Conflict):
        # The same request arrived twice at once, and the other one was first: what it made is in this one's way.
        kept = await run_in_threadpool(_find, ctx, attempt)
        if kept is None:
            raise
        return _replay(kept, attempt)


async def _attempt(request: Request, key: str) -> _Attempt:
    secret = bearer_token(request) or ""
    asked = f"{request.url.path}?{request.url.query}\n".encode()
    return _Attempt(
        scope=hashlib.sha256(f"scope:{secret}".encode()).hexdigest(),
        key=key,
        digest=hashlib.sha256(asked + await request.body()).hexdigest(),
        cipher=_cipher(secret, key),
    )


@asynccontextmanager
async def _unit_of_work(ctx: Context) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """One transaction for all that the request does. It is rolled back unless the yielded function commits it."""
    unit, token = ctx.db.begin_unit()

    async def commit() -> None:
        await _in_own_thread(partial(ctx.db.end_unit, unit, commit=True))

    try:
        yield commit
    finally:
        # Also when the request is cancelled: its transaction must not stay open.
        with CancelScope(shield=True):
            await _in_own_thread(partial(ctx.db.end_unit, unit, commit=False))
        ctx.db.leave_unit(token)


# A unit that may write has to end even if every other thread waits for it.
UNIT_THREADS = 8
_threads: RunVar[CapacityLimiter] = RunVar("unit_threads")


async def _in_own_thread(function: Callable[..., None], *arguments: Any) -> None:
    try:
        limiter = _threads.get()
    except LookupError:
        _threads.set(limiter := CapacityLimiter(UNIT_THREADS))
    await to_thread.run_sync(function, *arguments, limiter=limiter)


def _cipher(secret: str, key: str) -> Fernet:
    derived = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"idempotency:" + key.encode())
    return Fernet(base64.urlsafe_b64encode(derived.derive(secret.encode() or b"-")))


def _find(ctx: Context, attempt: _Attempt) -> KeptAnswer | None:
    with ctx.db.read() as session:
        return KeptAnswers(session).find(attempt.scope, attempt.key)


def _keep(ctx: Context, attempt: _Attempt, response: Response) -> None:
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    content = json.dumps({"headers": headers, "body": bytes(response.body).decode()})
    answer = KeptAnswer(attempt.digest, response.status_code, attempt.cipher.encrypt(content.encode()).decode())
    with ctx.db.write() as session:
        KeptAnswers(session).add(attempt.scope, attempt.key, answer, ctx.clock())


def _replay(kept: KeptAnswer, attempt: _Attempt) -> Response:
    if kept.request != attempt.digest:
        raise KeyReused("this Idempotency-Key came with another path, query or body before; use a new key")
    content = json.loads(attempt.cipher.decrypt(kept.content.encode()))
    return Response(content["body"], kept.status, headers={**content["headers"], REPLAYED: "true"})
