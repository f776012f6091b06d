"""Wake the event streams of this replica: one poll of the database serves all streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator

import anyio
from fastapi.concurrency import run_in_threadpool

from ..context.context import Context
from ..db.studies import Studies
from ..errors import ServiceError

POLL_SECONDS = 0.5


class EventHub:
    """Streams wait here for their study to change, then read the changes themselves, so none is missed."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._versions: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def subscribed(self, study_id: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever the study has changed."""
        event = asyncio.Event()
        self._waiting[study_id].add(event)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._poll())
        try:
            yield event
        finally:
            self._waiting[study_id].discard(event)
            if not self._waiting[study_id]:
                del self._waiting[study_id]
                self._versions.pop(study_id, None)
            if not self._waiting and self._task is not None:
                # Wait for a read in a thread: it must not outlive the server.
                task, self._task = self._task, None
                task.cancel()
                with anyio.CancelScope(shield=True), contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _poll(self) -> None:
        while self._waiting:
            await asyncio.sleep(POLL_SECONDS)
            # Retry while the database is away; streams stay open.
            with contextlib.suppress(ServiceError):
                found = await run_in_threadpool(self._read, list(self._waiting))
                for study_id, version in found.items():
                    if self._versions.get(study_id) != version:
                        self._versions[study_id] = version
                        for event in self._waiting.get(study_id, ()):
                            event.set()

    def _read(self, study_ids: list[str]) -> dict[str, int]:
        with self._ctx.db.read() as session:
            return Studies(session).versions(study_ids)
