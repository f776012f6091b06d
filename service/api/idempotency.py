"""POST under an ``Idempotency-Key``: a repeated request has one effect and gets the same answer.

Effect and answer commit in one transaction, so a crash leaves both or neither. Answers are kept for a day, encrypted
under the caller's token, which is not stored.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Coroutine
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
from ..errors import KeyReused
from .dependencies import bearer_token, get_context, identify

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


async def _once(request: Request, key: str, handle: Handler) -> Response:
    ctx = get_context(request)
    secret = bearer_token(request) or ""
    scope = hashlib.sha256(f"scope:{secret}".encode()).hexdigest()
    body = await request.body()
    asked = f"{request.url.path}?{request.url.query}\n".encode()
    said = hashlib.sha256(asked + body).hexdigest()
    cipher = _cipher(secret, key)
    # A caller whose access was revoked must not get a stored answer.
    await run_in_threadpool(identify, request, ctx)
    if (kept := await run_in_threadpool(_find, ctx, scope, key)) is not None:
        return _replay(kept, said, cipher)
    unit, token = ctx.db.begin_unit()
    try:
        response = await handle(request)
        if response.status_code < 300:
            answer = KeptAnswer(said, response.status_code, _seal(response, cipher))
            await _in_own_thread(_keep, ctx, scope, key, answer)
            await _in_own_thread(partial(ctx.db.end_unit, unit, commit=True))
        return response
    except IntegrityError:
        await _in_own_thread(partial(ctx.db.end_unit, unit, commit=False))
        # The same request arrived twice at once, and the other one was first.
        kept = await run_in_threadpool(_find, ctx, scope, key)
        if kept is None:
            raise
        return _replay(kept, said, cipher)
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


def _find(ctx: Context, scope: str, key: str) -> KeptAnswer | None:
    with ctx.db.read() as session:
        return KeptAnswers(session).find(scope, key)


def _keep(ctx: Context, scope: str, key: str, answer: KeptAnswer) -> None:
    with ctx.db.write() as session:
        KeptAnswers(session).add(scope, key, answer, ctx.clock())


def _seal(response: Response, cipher: Fernet) -> str:
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    content = {"headers": headers, "body": bytes(response.body).decode()}
    return cipher.encrypt(json.dumps(content).encode()).decode()


def _replay(kept: KeptAnswer, said: str, cipher: Fernet) -> Response:
    if kept.request != said:
        raise KeyReused("this Idempotency-Key came with another path, query or body before; use a new key")
    content = json.loads(cipher.decrypt(kept.content.encode()))
    return Response(content["body"], kept.status, headers={**content["headers"], REPLAYED: "true"})
