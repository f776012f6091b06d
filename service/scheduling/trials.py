"""Read trials and their metrics."""

from __future__ import annotations

from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.records import MetricPoint, Trial
from ..domain.states import TrialState
from .context import Context


def list_trials(
    ctx: Context, study_id: str, team_id: str | None, limit: int, after: int | None, state: TrialState | None
) -> tuple[list[Trial], int | None]:
    """A page of a study's trials by number, and the cursor of the next page.

    Raises:
        NotFound: there is no such study in this team.
    """
    with ctx.db.read() as session:
        Studies(session).get(study_id, team_id)
        found = Trials(session).page(study_id, limit + 1, after, state)
    page = found[:limit]
    return page, page[-1].number if len(found) > limit else None


def get_trial(ctx: Context, trial_id: str, team_id: str | None) -> Trial:
    """A trial.

    Raises:
        NotFound: there is none in this team.
    """
    with ctx.db.read() as session:
        return Trials(session).get(trial_id, team_id)


def get_metrics(ctx: Context, trial_id: str, team_id: str | None) -> list[MetricPoint]:
    """Every reported value of a trial.

    Raises:
        NotFound: there is none in this team.
    """
    with ctx.db.read() as session:
        trials = Trials(session)
        trials.get(trial_id, team_id)
        return trials.metrics(trial_id)
