"""Studies and their predictions in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from ..domain.plan import Plan
from ..domain.records import Candidate, StoredPrediction, Study
from ..domain.states import STUDY_ENDED, StudyPhase, StudyState, check_study_transition
from ..domain.study_spec import StudySpec
from ..errors import NotFound
from .models import PredictionRow, StudyRow


def _record(row: StudyRow) -> Study:
    return Study(
        id=row.id,
        team_id=row.team_id,
        name=row.name,
        state=StudyState(row.state),
        phase=StudyPhase(row.phase),
        reason=row.reason,
        spec=StudySpec.model_validate(row.spec),
        plan=Plan.model_validate(row.plan),
        candidates=[Candidate(**entry) for entry in row.candidates or []],
        version=row.version,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


class Studies:
    """Reads and writes studies in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, study: Study) -> None:
        """Record a new study."""
        self._session.add(
            StudyRow(
                id=study.id,
                team_id=study.team_id,
                name=study.name,
                state=study.state,
                phase=study.phase,
                reason=study.reason,
                spec=study.spec.model_dump(mode="json"),
                plan=study.plan.model_dump(mode="json"),
                version=study.version,
                created_at=study.created_at,
            )
        )

    def get(self, study_id: str, team_id: str | None = None, *, lock: bool = False) -> Study:
        """The study, locked for this transaction if ``lock``; ``team_id`` restricts it to one team.

        Raises:
            NotFound: there is none, or it belongs to another team (which are not told apart).
        """
        query = select(StudyRow).where(StudyRow.id == study_id)
        if team_id is not None:
            query = query.where(StudyRow.team_id == team_id)
        if lock:
            query = query.with_for_update().execution_options(populate_existing=True)
        row = self._session.scalars(query).one_or_none()
        if row is None:
            raise NotFound(f"there is no study {study_id}")
        return _record(row)

    def page(self, team_id: str | None, limit: int, after: str | None) -> list[Study]:
        """Studies of a team (of all teams for ``None``), newest first, after the one named."""
        query = select(StudyRow).order_by(StudyRow.id.desc()).limit(limit)
        if team_id is not None:
            query = query.where(StudyRow.team_id == team_id)
        if after is not None:
            query = query.where(StudyRow.id < after)
        return [_record(row) for row in self._session.scalars(query)]

    def with_work(self, team_id: str | None) -> list[Study]:
        """Studies (of one team, or of all) that may have something to run, oldest first."""
        query = (
            select(StudyRow).where(StudyRow.state.in_([StudyState.QUEUED, StudyState.RUNNING])).order_by(StudyRow.id)
        )
        if team_id is not None:
            query = query.where(StudyRow.team_id == team_id)
        return [_record(row) for row in self._session.scalars(query)]

    def set_state(self, study: Study, state: StudyState, now: datetime, reason: str | None = None) -> None:
        """Move a locked study to another state.

        Raises:
            Conflict: the table of transitions does not allow it.
        """
        check_study_transition(study.state, state)
        values: dict[str, object] = {"state": state, "reason": reason, "version": StudyRow.version + 1}
        if state is StudyState.RUNNING and study.started_at is None:
            values["started_at"] = now
        if state in STUDY_ENDED:
            values["finished_at"] = now
        self._session.execute(update(StudyRow).where(StudyRow.id == study.id).values(values))

    def set_phase(self, study_id: str, phase: StudyPhase) -> None:
        """Move a study to another phase."""
        self._session.execute(update(StudyRow).where(StudyRow.id == study_id).values(phase=phase))

    def set_candidates(self, study_id: str, candidates: Sequence[Candidate]) -> None:
        """Record what the confirmation compares."""
        values = [asdict(c) for c in candidates]
        self._session.execute(update(StudyRow).where(StudyRow.id == study_id).values(candidates=values))

    def touch(self, study_id: str) -> int:
        """Count the study's version up: its history has changed. Returns the new version."""
        query = (
            update(StudyRow)
            .where(StudyRow.id == study_id)
            .values(version=StudyRow.version + 1)
            .returning(StudyRow.version)
        )
        return self._session.scalars(query).one()

    def add_predictions(self, study_id: str, rankings: Mapping[str, Sequence[StoredPrediction]]) -> None:
        """Record the rankings by predictor, each best first."""
        for position, (predictor, ranking) in enumerate(rankings.items()):
            entries = [asdict(p) for p in ranking]
            row = PredictionRow(study_id=study_id, predictor=predictor, position=position, ranking=entries)
            self._session.add(row)

    def predictions(self, study_id: str) -> dict[str, list[StoredPrediction]]:
        """The rankings by predictor, best first."""
        query = select(PredictionRow).where(PredictionRow.study_id == study_id).order_by(PredictionRow.position)
        return {
            row.predictor: [StoredPrediction(**entry) for entry in row.ranking] for row in self._session.scalars(query)
        }
