"""The context of every use case; the source of time and of search decisions."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ..db.engine import Database
from ..search.policy import SearchPolicy, StopRule
from ..settings import Settings
from .aside import Aside, in_this_process
from .combiner import Combiner
from .history import Histories
from .recent import Recent

Clock = Callable[[], datetime]
# A wall clock that jumps by more than this was set.
CLOCK_TOLERANCE = timedelta(seconds=5)
# A pulse that is later than this was held up.
AWAY_SECONDS = 5.0
# Requests that are served in one pass.
LARGEST_BATCH = 256


def unobserved(sampler: str, seconds: float) -> None:
    """Ignore how long a sampler took."""


@dataclass(slots=True)
class Context:
    """Database, settings, clock and search policy of one server."""

    db: Database
    settings: Settings
    clock: Clock
    policy: SearchPolicy
    stop_rule: StopRule
    # A monotonic clock, to detect that the wall clock was set; tests set both.
    elapsed: Callable[[], float] = time.monotonic
    observe_sampling: Callable[[str, float], None] = unobserved
    # Work that grows with what callers send.
    aside: Aside = in_this_process
    histories: Histories = field(default_factory=Histories)
    # Lease requests that arrive together: what there is to do, by team; trials, by study; runners that found nothing.
    # Any, because what they ask is defined on top of the context.
    looks: Combiner[Any, Any] = field(default_factory=lambda: Combiner(LARGEST_BATCH))
    asks: Combiner[Any, Any] = field(default_factory=lambda: Combiner(LARGEST_BATCH))
    idles: Combiner[Any, Any] = field(default_factory=lambda: Combiner(LARGEST_BATCH))
    recent: Recent = field(default_factory=lambda: Recent(64))
    # Rows of all trials of a study take some 60 MB at 50,000 trials.
    rows: Recent = field(default_factory=lambda: Recent(4))
    # No lease expires before this time: after an outage, runners get one lease time to come back.
    expiry_from: datetime = field(init=False)
    _seen: tuple[datetime, float] = field(init=False)
    _pulse: float | None = field(default=None, init=False)
    _done: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._seen = self.clock(), self.elapsed()
        self.forgive_outage()

    @property
    def lease_time(self) -> timedelta:
        """How long a lease is held without a report."""
        return timedelta(seconds=self.settings.lease_seconds)

    def forgive_outage(self) -> None:
        """Start the lease time during which nothing expires (at start-up, and after the database was away)."""
        self.expiry_from = self.clock() + self.lease_time

    def is_due(self, chore: str, seconds: float) -> bool:
        """True at most once per ``seconds``; records the run."""
        now = self.elapsed()
        if now - self._done.get(chore, -seconds) < seconds:
            return False
        self._done[chore] = now
        return True

    def pulse(self) -> None:
        """Note that this process runs; called every second by a server's upkeep."""
        self.was_away()
        self._pulse = self.elapsed()

    def was_away(self) -> bool:
        """Whether this process stood still, as under SIGSTOP or in a suspended machine, where both clocks went on.

        If so, runners could not reach it, and no lease expires for one lease time.
        """
        now = self.elapsed()
        if self._pulse is None or now - self._pulse <= max(AWAY_SECONDS, self.settings.lease_seconds / 6):
            return False
        self._pulse = now
        self.forgive_outage()
        return True

    def clock_was_set(self) -> bool:
        """Whether the wall clock has jumped since the last call. If so, no lease expires for one lease time."""
        (wall, true), now = self._seen, (self.clock(), self.elapsed())
        self._seen = now
        if abs((now[0] - wall) - timedelta(seconds=now[1] - true)) <= CLOCK_TOLERANCE:
            return False
        self.forgive_outage()
        return True
