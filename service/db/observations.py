"""Trials as the search sees them, in SQL: a few columns of many rows."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..domain.records import Observation
from ..domain.states import FailureKind, TrialPhase, TrialState
from .models import TrialRow


class Observations:
    """Reads observations in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def of_study(self, study_id: str, after_version: int = -1) -> list[Observation]:
        """The search trials that changed after ``after_version`` of the study, by number.

        Those that began with another's adapter are left out: they were trained for longer, so they are not compared
        with the others.
        """
        query = (
            select(
                TrialRow.number,
                TrialRow.state,
                TrialRow.params,
                TrialRow.point,
                TrialRow.attrs,
                TrialRow.metrics,
                TrialRow.curve,
                TrialRow.failure_kind,
                TrialRow.version,
            )
            .where(
                TrialRow.study_id == study_id,
                TrialRow.phase == TrialPhase.SEARCH,
                TrialRow.version > after_version,
                TrialRow.start_from.is_(None),
            )
            .order_by(TrialRow.number)
        )
        return [
            Observation(
                number=r.number,
                state=TrialState(r.state),
                params=r.params,
                point=r.point,
                attrs=r.attrs,
                metrics=r.metrics,
                curve=tuple(r.curve),
                failure=None if r.failure_kind is None else FailureKind(r.failure_kind),
                version=r.version,
            )
            for r in self._session.execute(query)
        ]
