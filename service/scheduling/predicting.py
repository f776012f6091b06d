"""Read what was predicted."""

from __future__ import annotations

from ..db.studies import Studies
from ..domain.records import StoredPrediction
from .context import Context


def get_predictions(ctx: Context, study_id: str, team_id: str | None) -> dict[str, list[StoredPrediction]]:
    """A study's rankings by predictor, best first.

    Raises:
        NotFound: there is no such study in this team.
    """
    with ctx.db.read() as session:
        studies = Studies(session)
        studies.get(study_id, team_id)
        return studies.predictions(study_id)
