"""A study's events as Server-Sent Events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, cast

from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from ..context.context import Context
from ..domain.records import Event
from ..domain.states import STUDY_ENDED
from ..errors import Forbidden, ServiceError, Unauthorized
from ..results import events
from ..schemas.studies import EventOut
from ..schemas.wire import Page
from .dependencies import ContextDep, Id, Limit, Reader, identify, problems
from .hub import EventHub

router = APIRouter(tags=["studies"])
# How long a stream is silent, and how long it outlives the token that opened it.
KEEPALIVE_SECONDS = 5.0
RETRY_MS = 2000
EventNumber = Annotated[int, Query(ge=0, le=2**31 - 1, description="Only events after this one.")]
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


@router.get("/studies/{study_id}/events/log", responses=problems(404))
def event_log(
    ctx: ContextDep, principal: Reader, study_id: Id, after: EventNumber = 0, limit: Limit = 100
) -> Page[EventOut]:
    """List a study's events, oldest first. For clients that cannot keep a stream open."""
    found = events.after(ctx, study_id, principal.scope, after, limit)
    cursor = str(found[-1].number) if len(found) == limit else None
    return Page(items=[EventOut.model_validate(e) for e in found], next_cursor=cursor)


@router.get("/studies/{study_id}/events", responses=problems(404) | STREAM, response_class=StreamingResponse)
async def event_stream(
    request: Request,
    ctx: ContextDep,
    principal: Reader,
    study_id: Id,
    after: EventNumber = 0,
    last_event_id: Annotated[str | None, Header(max_length=20, pattern=r"^[0-9]*$")] = None,
) -> StreamingResponse:
    """Stream a study's events.

    Each event's ``id`` is its number. A client that reconnects with ``Last-Event-ID`` misses nothing. The stream ends
    with the event that ends the study.
    """
    since = min(int(last_event_id), 2**31 - 1) if last_event_id else after
    first = await run_in_threadpool(events.after, ctx, study_id, principal.scope, since, 500)
    hub = cast(EventHub, request.app.state.hub)

    def is_admitted() -> bool:
        try:
            identify(request, ctx)
        except (Unauthorized, Forbidden):
            return False
        return True

    stream = _stream(ctx, hub, study_id, principal.scope, since, first, is_admitted)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _stream(
    ctx: Context,
    hub: EventHub,
    study_id: str,
    team_id: str | None,
    since: int,
    first: list[Event],
    is_admitted: Callable[[], bool],
) -> AsyncIterator[bytes]:
    yield format_sse_event(retry=RETRY_MS, comment="events of a study")
    async with hub.subscribed(study_id) as changed:
        found = first
        while True:
            for event in found:
                since = event.number
                data = {"number": event.number, "kind": event.kind, "at": event.at.isoformat(), "data": event.data}
                yield format_sse_event(data_str=json.dumps(data), event=event.kind, id=str(event.number))
            if not found:
                if await _is_over(ctx, study_id, team_id, since):
                    return
                try:
                    await asyncio.wait_for(changed.wait(), KEEPALIVE_SECONDS)
                except TimeoutError:
                    yield KEEPALIVE_COMMENT
            changed.clear()
            try:
                # A token that was revoked meanwhile gets no further event.
                if not await run_in_threadpool(is_admitted):
                    return
                found = await run_in_threadpool(events.after, ctx, study_id, team_id, since, 500)
            except ServiceError:
                # The study or the database is gone; the client reconnects after its last event.
                return


async def _is_over(ctx: Context, study_id: str, team_id: str | None, since: int) -> bool:
    try:
        state, version = await run_in_threadpool(events.standing, ctx, study_id, team_id)
    except ServiceError:
        return True
    return state in STUDY_ENDED and version <= since
