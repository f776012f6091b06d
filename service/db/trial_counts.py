"""Numbers of trials in SQL: kept by study, phase and state, so that none is counted anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..domain.states import TrialPhase, TrialState
from .models import StudyCountRow, TrialRow
from .upserts import Upsert

_COUNT = Upsert(
    StudyCountRow,
    lambda rows: rows.on_conflict_do_update(
        index_elements=["study_id", "phase", "state"], set_={"count": StudyCountRow.count + rows.excluded.count}
    ),
)


class Counts:
    """Reads and changes the numbers in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def of_studies(self, study_ids: Sequence[str]) -> dict[str, dict[tuple[TrialPhase, TrialState], int]]:
        """Number of trials by phase and state, for several studies in one query."""
        query = select(StudyCountRow.study_id, StudyCountRow.phase, StudyCountRow.state, StudyCountRow.count).where(
            StudyCountRow.study_id.in_(study_ids), StudyCountRow.count != 0
        )
        counts: dict[str, dict[tuple[TrialPhase, TrialState], int]] = {study_id: {} for study_id in study_ids}
        for study_id, phase, state, count in self._session.execute(query):
            counts[study_id][TrialPhase(phase), TrialState(state)] = count
        return counts

    def change(self, study_id: str, changes: Mapping[tuple[TrialPhase, TrialState], int]) -> None:
        """Add changes to the numbers of a locked study."""
        rows = [
            {"study_id": study_id, "phase": phase, "state": state, "count": change}
            for (phase, state), change in changes.items()
        ]
        _COUNT.run(self._session, rows)

    def states(self) -> Mapping[tuple[str, str], int]:
        """Number of trials by state and kind of failure, over all studies (for monitoring)."""
        query = select(TrialRow.state, TrialRow.failure_kind, func.count()).group_by(
            TrialRow.state, TrialRow.failure_kind
        )
        return {(state, kind or ""): count for state, kind, count in self._session.execute(query)}
