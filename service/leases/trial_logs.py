"""The output of a trial's attempts: appended by runners, bounded, read from any position."""

from __future__ import annotations

from dataclasses import dataclass

from ..context.context import Context
from ..db.logs import TrialLogs
from ..db.retries import retried
from ..db.trials import Trials
from ..domain.states import TrialState
from ..errors import NotFound
from .fences import held

# The newest characters of an attempt that are kept.
MOST_KEPT = 1_000_000


@dataclass(frozen=True, slots=True)
class TrialLog:
    """A piece of an attempt's output; ``next`` is the position after it."""

    attempt: int
    attempts: int
    start: int
    next: int
    text: str
    running: bool


@retried
def append_log(ctx: Context, lease_id: str, team_id: str | None, start: int, text: str) -> int:
    """Append to an attempt's log and return its new end. Repeated text is ignored.

    Raises:
        NotFound: there was never such a lease in this team.
        LeaseLost: the lease is no longer held; nothing was changed.
    """
    with ctx.db.write() as session:
        attempt = held(session, lease_id, team_id)
        lease, trial = attempt.lease, attempt.trial
        logs = TrialLogs(session)
        end = logs.end(trial.id, lease.attempt)
        new = text[max(0, end - start) :]
        if not new:
            return end
        begins = max(start, end)
        logs.add(trial.id, lease.attempt, begins, new)
        logs.forget_before(trial.id, lease.attempt, begins + len(new) - MOST_KEPT)
        return begins + len(new)


def read_log(
    ctx: Context, trial_id: str, team_id: str | None, attempt: int | None, after: int | None, most: int
) -> TrialLog:
    """Up to ``most`` characters of an attempt's log from ``after`` on; by default the end of the last attempt's.

    Raises:
        NotFound: there is no such trial in this team, or it never had such an attempt.
    """
    with ctx.db.read() as session:
        trial = Trials(session).get(trial_id, team_id)
        chosen = trial.attempts if attempt is None else attempt
        if attempt is not None and not 1 <= attempt <= trial.attempts:
            raise NotFound(f"trial {trial.number} has {trial.attempts} attempts; there is no attempt {attempt}")
        end = TrialLogs(session).end(trial_id, chosen)
        begin = max(0, end - most) if after is None else after
        text, at = "", None
        for start, piece in TrialLogs(session).pieces(trial_id, chosen, begin):
            if at is None:
                at = max(start, begin)
            text += piece[max(0, begin - start) :]
            if len(text) >= most:
                break
        at = min(begin, end) if at is None else at
        text = text[:most]
        running = trial.state is TrialState.RUNNING and chosen == trial.attempts
        return TrialLog(chosen, trial.attempts, at, at + len(text), text, running)
