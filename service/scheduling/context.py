"""What every use case needs; time and decisions come in from here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ..db.engine import Database
from ..search.policy import SearchPolicy, StopRule
from ..settings import Settings

Clock = Callable[[], datetime]


@dataclass(slots=True)
class Context:
    """Database, settings, clock and search policy of one server."""

    db: Database
    settings: Settings
    clock: Clock
    policy: SearchPolicy
    stop_rule: StopRule
    # Until then no lease expires: runners that could not reach us in an outage get one lease time to come back.
    expiry_from: datetime = field(init=False)

    def __post_init__(self) -> None:
        self.forgive_outage()

    @property
    def lease_time(self) -> timedelta:
        """How long a lease is held without a report."""
        return timedelta(seconds=self.settings.lease_seconds)

    def forgive_outage(self) -> None:
        """Start the lease time during which nothing expires (at start-up, and after the database was away)."""
        self.expiry_from = self.clock() + self.lease_time
