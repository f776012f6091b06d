"""Decide whether a lease may still act on its trial."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from ..db.leases import Leases
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.records import Lease, Study, Trial
from ..domain.states import EventKind, LeaseState, TrialState
from ..errors import LeaseLost
from .hosts import clear


def held(session: Session, lease_id: str, team_id: str | None) -> tuple[Lease, Trial, Study]:
    """The lease with its locked trial and study, if the lease may still act.

    A lease may act until its trial is leased again or ends. An expired lease may act while its trial is still queued,
    so a runner that comes back in time loses nothing.

    Raises:
        NotFound: there was never such a lease in this team (``None``: in any).
        LeaseLost: it is no longer held; nothing was changed.
    """
    trial_id, study_id = Leases(session).place(lease_id)
    # Lock order everywhere: the study, then its trial.
    study = Studies(session).get(study_id, team_id, lock=True)
    trial = Trials(session).get(trial_id, lock=True)
    lease = Leases(session).get(lease_id)
    ended = lease.state in (LeaseState.FINISHED, LeaseState.RELEASED)
    if ended or trial.lease_id != lease.id or trial.state not in (TrialState.RUNNING, TrialState.QUEUED):
        raise LeaseLost(f"this lease of trial {trial.number} is no longer held; nothing was changed")
    return lease, trial, study


def reclaim(session: Session, trial: Trial, now: datetime) -> Trial:
    """Take a trial back from the queue for its expired lease."""
    if trial.state is not TrialState.QUEUED:
        return trial
    losses = max(0, trial.losses - 1)
    if trial.lease_id is not None:
        # The runner's silence no longer counts against its host.
        clear(session, Leases(session).get(trial.lease_id))
    return Trials(session).set_state(trial, TrialState.RUNNING, now, EventKind.TRIAL_STARTED, losses=losses)
