"""Where a runner's trials are trained: in its own process, or in several others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from service.schemas.leases import LeaseOut, ResultIn
from service.schemas.specs import StopReason


class Placement(Protocol):
    """Decides where a leased trial runs."""

    def may_lease(self) -> bool:
        """Whether the resources of a trial are reserved. Nothing is leased before."""
        ...

    def run(self, lease: LeaseOut, here: Callable[[], ResultIn], is_wanted: Callable[[], bool]) -> ResultIn:
        """Run a leased trial: by calling ``here``, or in other processes while the trial ``is_wanted``."""
        ...


class InProcess:
    """Trials run in the runner's own process."""

    def may_lease(self) -> bool:
        """Always: the resources are the process's own."""
        return True

    def run(self, lease: LeaseOut, here: Callable[[], ResultIn], is_wanted: Callable[[], bool]) -> ResultIn:
        """Run the trial here."""
        return here()


class Group(Protocol):
    """The processes that train one trial together. All of them call ``agree`` at the same points."""

    @property
    def leads(self) -> bool:
        """Whether this process stores the trial's artifacts."""
        ...

    def agree(self, reason: StopReason | None) -> StopReason | None:
        """The leading process's reason to stop, so that all stop at the same step."""
        ...


class Alone:
    """A trial of one process."""

    leads = True

    def agree(self, reason: StopReason | None) -> StopReason | None:
        """Its own reason."""
        return reason
