"""Create and steer studies."""

from __future__ import annotations

from typing import Any

from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.ids import new_id
from ..domain.records import Study
from ..domain.states import StudyPhase, StudyState, TrialPhase, TrialState
from .context import Context
from .planning import Planned, plan_study

Counts = dict[tuple[TrialPhase, TrialState], int]


def create_study(ctx: Context, team_id: str, body: Any) -> tuple[Study, Planned]:
    """Validate a study in full, then record it with its predictions.

    Raises:
        InvalidStudy: with every fault; nothing was stored.
    """
    planned = plan_study(body, ctx.settings.data_dirs)
    now = ctx.clock()
    study = Study(
        id=new_id(now),
        team_id=team_id,
        name=planned.spec.name,
        state=StudyState.QUEUED,
        phase=StudyPhase.SEARCH,
        reason=None,
        spec=planned.spec,
        plan=planned.plan,
        candidates=[],
        version=0,
        created_at=now,
        started_at=None,
        finished_at=None,
    )
    with ctx.db.write() as session:
        studies = Studies(session)
        studies.add(study)
        session.flush()
        studies.add_predictions(study.id, planned.predictions)
    return study, planned


def get_study(ctx: Context, study_id: str, team_id: str | None) -> tuple[Study, Counts]:
    """A study and the number of its trials by phase and state.

    Raises:
        NotFound: there is none in this team.
    """
    with ctx.db.read() as session:
        study = Studies(session).get(study_id, team_id)
        return study, Trials(session).counts([study_id])[study_id]


def list_studies(
    ctx: Context, team_id: str | None, limit: int, after: str | None
) -> tuple[list[tuple[Study, Counts]], str | None]:
    """A page of studies, newest first, and the cursor of the next page."""
    with ctx.db.read() as session:
        found = Studies(session).page(team_id, limit + 1, after)
        page = found[:limit]
        counts = Trials(session).counts([s.id for s in page])
    cursor = page[-1].id if len(found) > limit else None
    return [(s, counts[s.id]) for s in page], cursor


def cancel_study(ctx: Context, study_id: str, team_id: str | None) -> tuple[Study, Counts]:
    """Cancel a study: what is queued is cancelled now, what runs is told to stop at its next report.

    Raises:
        NotFound: there is none in this team.
        Conflict: the study has already ended.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        studies, trials = Studies(session), Trials(session)
        study = studies.get(study_id, team_id, lock=True)
        studies.set_state(study, StudyState.CANCELLED, now, reason="cancelled by request")
        trials.cancel_queued(study_id, now)
        ended = studies.get(study_id, lock=True)
        return ended, trials.counts([study_id])[study_id]
