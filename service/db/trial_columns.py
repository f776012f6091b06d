"""Single columns of all trials of a study, in SQL: what would be slow to read as whole records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..domain.states import TrialPhase
from .models import TrialRow


class TrialColumns:
    """Reads columns in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def parameters(self, study_id: str) -> dict[int, int]:
        """The adapter parameters of each trial of a study, by number."""
        query = select(TrialRow.number, TrialRow.parameters).where(TrialRow.study_id == study_id)
        return {row.number: row.parameters for row in self._session.execute(query)}

    def search_candidates(self, study_id: str) -> dict[int, str]:
        """The search trials that begin as somebody's choice, by number: a predictor's, or one that was named."""
        query = select(TrialRow.number, TrialRow.candidate).where(
            TrialRow.study_id == study_id, TrialRow.phase == TrialPhase.SEARCH, TrialRow.candidate.is_not(None)
        )
        return {row.number: row.candidate for row in self._session.execute(query)}

    def measurements(self, study_id: str) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
        """Parameters, metrics and resources of each trial of a study, in any order."""
        query = select(TrialRow.params, TrialRow.metrics, TrialRow.resources).where(TrialRow.study_id == study_id)
        for row in self._session.execute(query.execution_options(yield_per=1000)):
            yield row.params, row.metrics, row.resources

    def scores(self, study_id: str) -> dict[str, list[float]]:
        """The objective's value on every test example, by id of the confirmation trial that sent them."""
        query = select(TrialRow.id, TrialRow.scores).where(
            TrialRow.study_id == study_id, TrialRow.phase == TrialPhase.CONFIRMATION
        )
        return {trial_id: scores for trial_id, scores in self._session.execute(query) if scores is not None}
