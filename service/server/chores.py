"""Background work of a server, in its own threads."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from ..context.context import Context
from ..errors import Unavailable
from ..studies.removal import purge_deleted
from ..tenancy.deliveries import Deliverer
from .maintenance import collect_checkpoints, maintain, tidy

_log = logging.getLogger(__name__)
TIDY_SECONDS = 3600.0
COLLECTION_SECONDS = 60.0
WEBHOOK_SECONDS = 1.0
PULSE_SECONDS = 1.0


class Chores:
    """Every replica runs these; the database decides which replica does what."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._stopping = threading.Event()
        self._deliverer = Deliverer(ctx)
        self._next_tidy = time.monotonic() + 60.0
        self._next_collection = time.monotonic() + COLLECTION_SECONDS
        self._threads = [
            threading.Thread(target=self._repeat, args=(self._maintain, ctx.settings.maintenance_seconds), daemon=True),
            threading.Thread(target=self._repeat, args=(self._deliver, WEBHOOK_SECONDS), daemon=True),
            threading.Thread(target=self._repeat, args=(ctx.pulse, PULSE_SECONDS), daemon=True),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop after the current round."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=15.0)
        self._deliverer.close()

    def _repeat(self, chore: Callable[[], None], seconds: float) -> None:
        # Jitter spreads replicas that start together.
        while not self._stopping.wait(seconds * random.uniform(0.8, 1.2)):
            try:
                chore()
            except Unavailable as error:
                _log.warning("a chore has to wait: %s", error.detail)
                self._ctx.forgive_outage()
            except Exception:  # a failed round must not end later rounds
                _log.exception("a chore failed")

    def _maintain(self) -> None:
        maintain(self._ctx)
        if time.monotonic() >= self._next_collection:
            self._next_collection = time.monotonic() + COLLECTION_SECONDS
            collect_checkpoints(self._ctx)
        if time.monotonic() >= self._next_tidy:
            self._next_tidy = time.monotonic() + TIDY_SECONDS
            tidy(self._ctx)
            for study_id in purge_deleted(self._ctx):
                _log.info("deleted study %s was purged", study_id)

    def _deliver(self) -> None:
        while self._deliverer.round() and not self._stopping.is_set():
            pass
