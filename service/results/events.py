"""Read a study's events."""

from __future__ import annotations

from ..context.context import Context
from ..db.events import Events
from ..db.studies import Studies
from ..domain.records import Event
from ..domain.states import StudyState


def after(ctx: Context, study_id: str, team_id: str | None, number: int, limit: int) -> list[Event]:
    """The events of a study after the given number, in order.

    Raises:
        NotFound: there is no such study in this team.
    """
    with ctx.db.read() as session:
        Studies(session).get(study_id, team_id)
        return Events(session).after(study_id, number, limit)


def standing(ctx: Context, study_id: str, team_id: str | None) -> tuple[StudyState, int]:
    """A study's state and the number of its newest event; an ended state for a deleted study.

    Raises:
        NotFound: there is no such study in this team.
    """
    with ctx.db.read() as session:
        study = Studies(session).get(study_id, team_id)
        return study.state, study.version
