"""Decide whether a lease may still act on its trial."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from ..db.leases import Leases
from ..db.trials import Trials
from ..domain.records import Attempt, Lease, Trial
from ..domain.states import EventKind, LeaseState, TrialState
from ..errors import LeaseLost
from .hosts import clear

SEEN_SECONDS = 10.0


def held(session: Session, lease_id: str, team_id: str | None) -> Attempt:
    """The lease with its locked trial and study, if the lease may still act.

    A lease may act until its trial is leased again or ends. An expired lease may act while its trial is still queued,
    so a runner that comes back in time loses nothing.

    Raises:
        NotFound: there was never such a lease in this team (``None``: in any).
        LeaseLost: it is no longer held; nothing was changed.
    """
    attempt = Leases(session).locked(lease_id, team_id)
    lease, trial = attempt.lease, attempt.trial
    ended = lease.state in (LeaseState.FINISHED, LeaseState.RELEASED)
    if ended or trial.lease_id != lease.id or trial.state not in (TrialState.RUNNING, TrialState.QUEUED):
        raise LeaseLost(f"this lease of trial {trial.number} is no longer held; nothing was changed")
    return attempt


def hear_of_runner(session: Session, lease: Lease, now: datetime, lease_time: timedelta) -> None:
    """Record when a lease's runner was last seen, once in ``SEEN_SECONDS``: not every report needs the statement."""
    renewed_at = lease.expires_at - lease_time
    if renewed_at.timestamp() // SEEN_SECONDS != now.timestamp() // SEEN_SECONDS:
        Leases(session).hear_of(lease.runner, now)


def reclaim(session: Session, attempt: Attempt, now: datetime) -> Trial:
    """The running trial of an attempt, taken back from the queue if its lease had expired."""
    trial = attempt.trial
    if trial.state is not TrialState.QUEUED:
        return trial
    # The runner's silence no longer counts against its host.
    clear(session, attempt)
    losses = max(0, trial.losses - 1)
    return Trials(session).set_state(trial, TrialState.RUNNING, now, EventKind.TRIAL_STARTED, losses=losses)
