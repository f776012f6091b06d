"""Trials and their metrics in SQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ..domain.ids import new_id
from ..domain.records import Failure, MetricPoint, NewTrial, Trial
from ..domain.states import TRIAL_ENDED, FailureKind, TrialPhase, TrialState, check_trial_transition
from ..errors import NotFound
from .models import MetricRow, StudyRow, TrialRow


def _record(row: TrialRow, curve: dict[int, float] | None = None) -> Trial:
    failure = None
    if row.failure_kind is not None:
        failure = Failure(FailureKind(row.failure_kind), row.failure_message or "")
    return Trial(
        id=row.id,
        study_id=row.study_id,
        number=row.number,
        phase=TrialPhase(row.phase),
        method=row.method,
        candidate=row.candidate,
        params=row.params,
        point=row.point,
        seed=row.seed,
        state=TrialState(row.state),
        parameters=row.parameters,
        metrics=row.metrics,
        scores=row.scores,
        failure=failure,
        lease_id=row.lease_id,
        attempts=row.attempts,
        errors=row.errors,
        losses=row.losses,
        checkpoint=row.checkpoint,
        artifact=row.artifact,
        resources=row.resources,
        stop_reason=row.stop_reason,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        curve=curve or {},
    )


class Trials:
    """Reads and writes trials in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, study_id: str, trials: Iterable[NewTrial], now: datetime) -> list[str]:
        """Record new trials, queued. The pair (study, number) is unique: a number taken meanwhile fails the flush."""
        rows = [
            TrialRow(
                id=new_id(now),
                study_id=study_id,
                number=t.number,
                phase=t.phase,
                method=t.method,
                candidate=t.candidate,
                params=t.params,
                point=t.point,
                seed=t.seed,
                state=TrialState.QUEUED,
                parameters=t.parameters,
                metrics={},
                attempts=0,
                errors=0,
                losses=0,
                resources={},
                created_at=now,
            )
            for t in trials
        ]
        self._session.add_all(rows)
        self._session.flush()
        return [row.id for row in rows]

    def get(self, trial_id: str, team_id: str | None = None, *, lock: bool = False) -> Trial:
        """The trial, locked for this transaction if ``lock``; ``team_id`` restricts it to one team.

        Raises:
            NotFound: there is none, or it belongs to another team.
        """
        query = select(TrialRow).where(TrialRow.id == trial_id)
        if team_id is not None:
            query = query.join(StudyRow, StudyRow.id == TrialRow.study_id).where(StudyRow.team_id == team_id)
        if lock:
            query = query.with_for_update(of=TrialRow).execution_options(populate_existing=True)
        row = self._session.scalars(query).one_or_none()
        if row is None:
            raise NotFound(f"there is no trial {trial_id}")
        return _record(row)

    def page(self, study_id: str, limit: int, after: int | None, state: TrialState | None = None) -> list[Trial]:
        """Trials of a study by number, after the one named."""
        query = select(TrialRow).where(TrialRow.study_id == study_id).order_by(TrialRow.number).limit(limit)
        if after is not None:
            query = query.where(TrialRow.number > after)
        if state is not None:
            query = query.where(TrialRow.state == state)
        return [_record(row) for row in self._session.scalars(query)]

    def of_study(self, study_id: str, phase: TrialPhase | None = None) -> list[Trial]:
        """All trials of a study (of one phase), by number."""
        query = select(TrialRow).where(TrialRow.study_id == study_id).order_by(TrialRow.number)
        if phase is not None:
            query = query.where(TrialRow.phase == phase)
        return [_record(row) for row in self._session.scalars(query)]

    def history(self, study_id: str, metric: str) -> list[Trial]:
        """The search trials with their evaluations of ``metric``, by number."""
        curves: dict[str, dict[int, float]] = defaultdict(dict)
        query = (
            select(MetricRow.trial_id, MetricRow.value)
            .join(TrialRow, TrialRow.id == MetricRow.trial_id)
            .where(TrialRow.study_id == study_id, TrialRow.phase == TrialPhase.SEARCH, MetricRow.name == metric)
            .order_by(MetricRow.trial_id, MetricRow.step)
        )
        for trial_id, value in self._session.execute(query):
            curve = curves[trial_id]
            curve[len(curve) + 1] = value
        query_trials = (
            select(TrialRow)
            .where(TrialRow.study_id == study_id, TrialRow.phase == TrialPhase.SEARCH)
            .order_by(TrialRow.number)
        )
        return [_record(row, curves.get(row.id)) for row in self._session.scalars(query_trials)]

    def counts(self, study_ids: Sequence[str]) -> dict[str, dict[tuple[TrialPhase, TrialState], int]]:
        """Number of trials by phase and state, for several studies in one query."""
        query = (
            select(TrialRow.study_id, TrialRow.phase, TrialRow.state, func.count())
            .where(TrialRow.study_id.in_(study_ids))
            .group_by(TrialRow.study_id, TrialRow.phase, TrialRow.state)
        )
        counts: dict[str, dict[tuple[TrialPhase, TrialState], int]] = {study_id: {} for study_id in study_ids}
        for study_id, phase, state, count in self._session.execute(query):
            counts[study_id][TrialPhase(phase), TrialState(state)] = count
        return counts

    def next_number(self, study_id: str) -> int:
        """One above the highest number in use."""
        query = select(func.coalesce(func.max(TrialRow.number), -1)).where(TrialRow.study_id == study_id)
        return int(self._session.scalars(query).one()) + 1

    def first_queued(self, study_id: str) -> Trial | None:
        """The queued trial with the lowest number, locked; one that another replica is taking is passed over."""
        query = (
            select(TrialRow)
            .where(TrialRow.study_id == study_id, TrialRow.state == TrialState.QUEUED)
            .order_by(TrialRow.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        row = self._session.scalars(query).one_or_none()
        return None if row is None else _record(row)

    def set_state(self, trial: Trial, state: TrialState, now: datetime, **values: Any) -> None:
        """Move a locked trial to another state and write ``values`` (columns) with it.

        Raises:
            Conflict: the table of transitions does not allow it.
        """
        check_trial_transition(trial.state, state)
        if state is TrialState.RUNNING and trial.started_at is None:
            values["started_at"] = now
        if state in TRIAL_ENDED:
            values["finished_at"] = now
        self.write(trial.id, state=state, **values)

    def write(self, trial_id: str, **values: Any) -> None:
        """Write columns of one trial."""
        self._session.execute(update(TrialRow).where(TrialRow.id == trial_id).values(**values))

    def cancel_queued(self, study_id: str, now: datetime) -> int:
        """Cancel the trials of a study that have not begun; returns how many."""
        query = (
            update(TrialRow)
            .where(TrialRow.study_id == study_id, TrialRow.state == TrialState.QUEUED)
            .values(state=TrialState.CANCELLED, finished_at=now)
            .returning(TrialRow.id)
        )
        return len(self._session.scalars(query).all())

    def add_metrics(self, trial_id: str, points: Sequence[MetricPoint]) -> list[str]:
        """Record metric values; those already there (a report repeated) stay. Returns the names of the new ones."""
        if not points:
            return []
        insert = sqlite.insert if self._session.get_bind().dialect.name == "sqlite" else postgresql.insert
        rows = [
            {"trial_id": trial_id, "name": p.name, "step": p.step, "value": p.value, "reported_at": p.reported_at}
            for p in points
        ]
        query = insert(MetricRow).values(rows).on_conflict_do_nothing().returning(MetricRow.name)
        return list(self._session.scalars(query))

    def forget_metrics(self, trial_id: str) -> None:
        """Remove what earlier attempts reported: the trial starts from the beginning."""
        self._session.execute(delete(MetricRow).where(MetricRow.trial_id == trial_id))

    def metrics(self, trial_id: str) -> list[MetricPoint]:
        """Every reported value of a trial, by step and name."""
        query = select(MetricRow).where(MetricRow.trial_id == trial_id).order_by(MetricRow.step, MetricRow.name)
        return [MetricPoint(row.step, row.name, row.value, row.reported_at) for row in self._session.scalars(query)]
