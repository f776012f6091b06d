"""Send webhooks at the same time, so that no team waits for another's receivers."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from ..context.context import Context
from ..domain.operation import Delivery, Webhook
from .webhooks import claim, deliver

_log = logging.getLogger(__name__)
THREADS = 8
# After this long a team's further deliveries wait, so that others get the thread.
TEAM_SECONDS = 30.0


class Deliverer:
    """Sends what is due in up to ``THREADS`` threads, one for each team that has something to send."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._http = httpx.Client(trust_env=False)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="webhooks")
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def round(self) -> int:
        """Start sending what is due of teams that are not being served; returns how many deliveries were claimed."""
        with self._lock:
            busy = set(self._busy)
        due = claim(self._ctx, busy)
        teams: dict[str, list[tuple[Webhook, Delivery]]] = defaultdict(list)
        for webhook, delivery in due:
            teams[webhook.team_id].append((webhook, delivery))
        for team, deliveries in teams.items():
            with self._lock:
                self._busy.add(team)
            self._threads.submit(self._serve, team, deliveries)
        return len(due)

    def close(self) -> None:
        """Wait for what is being sent; the rest is sent by others, or after a restart."""
        self._closing.set()
        self._threads.shutdown(cancel_futures=True)
        self._http.close()

    def _serve(self, team: str, deliveries: Sequence[tuple[Webhook, Delivery]]) -> None:
        started = time.monotonic()
        try:
            for webhook, delivery in deliveries:
                # What is left stays claimed for a while, and is sent later.
                if self._closing.is_set() or time.monotonic() - started > TEAM_SECONDS:
                    return
                deliver(self._ctx, self._http, webhook, delivery)
        except Exception:  # the database may be away: the claim runs out
            _log.exception("deliveries have to wait")
        finally:
            with self._lock:
                self._busy.discard(team)
