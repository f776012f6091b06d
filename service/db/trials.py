"""Trials and their metrics in SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Table, func, insert, or_, select, update
from sqlalchemy.orm import Session

from ..domain.ids import new_id
from ..domain.records import Failure, NewTrial, Trial
from ..domain.states import (
    TRIAL_ENDED,
    EventKind,
    FailureKind,
    StopReason,
    StudyState,
    TrialPhase,
    TrialState,
    check_trial_transition,
)
from ..errors import NotFound
from .models import StudyRow, TrialRow
from .studies import Studies
from .trial_counts import Counts

_INSERT = insert(cast(Table, TrialRow.__table__))
_INSERTED = (
    *("id", "study_id", "number", "phase", "method", "candidate", "params", "point", "seed", "state", "parameters"),
    *("metrics", "curve", "attempts", "errors", "losses", "artifact_bytes", "resources", "version", "created_at"),
    *("lease_id", "started_at", "cloned_from", "start_from"),
)


def trial_record(row: TrialRow) -> Trial:
    """The record of a row."""
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
        curve=row.curve,
        version=row.version,
        artifact_bytes=row.artifact_bytes,
        cloned_from=row.cloned_from,
        start_from=row.start_from,
    )


def _trial(study_id: str, new: NewTrial, now: datetime, version: int) -> Trial:
    return Trial(
        id=new_id(now),
        study_id=study_id,
        number=new.number,
        phase=new.phase,
        method=new.method,
        candidate=new.candidate,
        params=new.params,
        point=new.point,
        seed=new.seed,
        state=TrialState.QUEUED,
        parameters=new.parameters,
        metrics={},
        failure=None,
        lease_id=None,
        attempts=0,
        errors=0,
        losses=0,
        checkpoint=None,
        artifact=None,
        resources={},
        stop_reason=None,
        created_at=now,
        started_at=None,
        finished_at=None,
        version=version,
        cloned_from=new.cloned_from,
        start_from=new.start_from,
    )


def _queued(new: Sequence[NewTrial]) -> dict[str, Any]:
    return {"trials": [{"number": t.number, "phase": t.phase} for t in new]}


def _moved(trial: Trial, state: TrialState) -> dict[str, Any]:
    return {"trial_id": trial.id, "number": trial.number, "phase": trial.phase, "state": state}


class Trials:
    """Reads and writes trials in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, study_id: str, trials: Iterable[NewTrial], now: datetime) -> list[Trial]:
        """Record new trials of a locked study as queued; returns them.

        The pair (study, number) is unique: a taken number fails the flush.
        """
        new = list(trials)
        if not new:
            return []
        version = Studies(self._session).touch(study_id, EventKind.TRIAL_QUEUED, now, _queued(new))
        return self._insert([_trial(study_id, t, now, version) for t in new], new)

    def add_running(
        self, study_id: str, trials: Iterable[NewTrial], lease_ids: Sequence[str], now: datetime
    ) -> list[Trial]:
        """Record new trials of a locked study as running, each under its lease; returns them.

        Events and versions are those of trials that are queued and then start. For a taken number see :meth:`add`.
        """
        new = list(trials)
        if not new:
            return []
        queued = [_trial(study_id, t, now, 0) for t in new]
        events = [(EventKind.TRIAL_QUEUED, _queued(new))]
        events += [(EventKind.TRIAL_STARTED, _moved(t, TrialState.RUNNING)) for t in queued]
        version = Studies(self._session).touch_all(study_id, now, events)
        rows = [
            replace(
                trial,
                state=TrialState.RUNNING,
                lease_id=lease_id,
                attempts=1,
                started_at=now,
                version=version - len(queued) + 1 + k,
            )
            for k, (trial, lease_id) in enumerate(zip(queued, lease_ids, strict=True))
        ]
        return self._insert(rows, new)

    def _insert(self, rows: list[Trial], new: Sequence[NewTrial]) -> list[Trial]:
        self._session.connection().execute(
            _INSERT,
            [
                {name: getattr(row, name) for name in _INSERTED} | {"attrs": t.attrs}
                for row, t in zip(rows, new, strict=True)
            ],
        )
        Counts(self._session).change(rows[0].study_id, Counter((t.phase, t.state) for t in rows))
        return rows

    def find(self, trial_id: str) -> Trial | None:
        """The trial of any team; ``None`` if there is none."""
        row = self._session.get(TrialRow, trial_id)
        return None if row is None else trial_record(row)

    def get(self, trial_id: str, team_id: str | None = None, *, lock: bool = False) -> Trial:
        """The trial, locked for this transaction if ``lock``; ``team_id`` restricts it to one team.

        Raises:
            NotFound: there is none, or it belongs to another team.
        """
        query = (
            select(TrialRow)
            .join(StudyRow, StudyRow.id == TrialRow.study_id)
            .where(TrialRow.id == trial_id, StudyRow.deleted_at.is_(None))
        )
        if team_id is not None:
            query = query.where(StudyRow.team_id == team_id)
        if lock:
            query = query.with_for_update(of=TrialRow)
        row = self._session.scalars(query.execution_options(populate_existing=True)).one_or_none()
        if row is None:
            raise NotFound(f"there is no trial {trial_id}")
        return trial_record(row)

    def numbered(self, study_id: str, number: int) -> Trial | None:
        """The trial of a study with that number."""
        query = select(TrialRow).where(TrialRow.study_id == study_id, TrialRow.number == number)
        row = self._session.scalars(query).one_or_none()
        return None if row is None else trial_record(row)

    def page(
        self,
        study_id: str,
        limit: int,
        after: int | None,
        states: Sequence[TrialState] = (),
        phase: TrialPhase | None = None,
        *,
        descending: bool = False,
    ) -> list[Trial]:
        """Trials of a study by number; only those after the number ``after``, if given."""
        order = TrialRow.number.desc() if descending else TrialRow.number.asc()
        query = select(TrialRow).where(TrialRow.study_id == study_id).order_by(order).limit(limit)
        if after is not None:
            query = query.where(TrialRow.number < after if descending else TrialRow.number > after)
        if states:
            query = query.where(TrialRow.state.in_(states))
        if phase is not None:
            query = query.where(TrialRow.phase == phase)
        return [trial_record(row) for row in self._session.scalars(query)]

    def slice(
        self,
        study_id: str,
        limit: int,
        offset: int,
        state: TrialState | None = None,
        phase: TrialPhase | None = None,
        *,
        descending: bool = False,
    ) -> list[Trial]:
        """Trials of a study by number, after the first ``offset`` of those in this state and phase."""
        order = TrialRow.number.desc() if descending else TrialRow.number.asc()
        query = select(TrialRow).where(TrialRow.study_id == study_id).order_by(order).limit(limit).offset(offset)
        if state is not None:
            query = query.where(TrialRow.state == state)
        if phase is not None:
            query = query.where(TrialRow.phase == phase)
        return [trial_record(row) for row in self._session.scalars(query)]

    def outside_history(self, study_id: str) -> list[Trial]:
        """Trials that the search does not see: those of other phases, and those that began with an adapter."""
        query = select(TrialRow).where(
            TrialRow.study_id == study_id,
            or_(TrialRow.phase != TrialPhase.SEARCH, TrialRow.start_from.is_not(None)),
            TrialRow.phase != TrialPhase.MEASUREMENT,
        )
        return [trial_record(row) for row in self._session.scalars(query.order_by(TrialRow.number))]

    def numbered_all(self, study_id: str, numbers: Sequence[int]) -> list[Trial]:
        """The trials of a study with these numbers, in any order."""
        query = select(TrialRow).where(TrialRow.study_id == study_id, TrialRow.number.in_(numbers))
        return [trial_record(row) for row in self._session.scalars(query)]

    def of_study(self, study_id: str, *phases: TrialPhase) -> list[Trial]:
        """All trials of a study (of some phases), by number."""
        query = select(TrialRow).where(TrialRow.study_id == study_id).order_by(TrialRow.number)
        if phases:
            query = query.where(TrialRow.phase.in_(phases))
        return [trial_record(row) for row in self._session.scalars(query)]

    def needless_checkpoints(self, most: int) -> list[tuple[str, str, str]]:
        """Trials with a checkpoint that nothing will resume from: trial, study, and the checkpoint's URL.

        A failed trial may be retried while its study is open.
        """
        over = [s for s in TRIAL_ENDED if s is not TrialState.FAILED]
        query = (
            select(TrialRow.id, TrialRow.study_id, TrialRow.checkpoint)
            .join(StudyRow, StudyRow.id == TrialRow.study_id)
            .where(TrialRow.checkpoint.is_not(None), TrialRow.state.in_(TRIAL_ENDED))
            .where(TrialRow.state.in_(over) | StudyRow.state.in_([StudyState.CANCELLED, StudyState.FAILED]))
            .limit(most)
        )
        return [(row.id, row.study_id, str(row.checkpoint)) for row in self._session.execute(query)]

    def stopped_for_good(self, study_id: str) -> int:
        """How many search trials were stopped as hopeless, and cannot be continued."""
        query = select(func.count()).where(
            TrialRow.study_id == study_id,
            TrialRow.phase == TrialPhase.SEARCH,
            TrialRow.state == TrialState.PRUNED,
            TrialRow.stop_reason == StopReason.PRUNED,
        )
        return self._session.scalar(query) or 0

    def next_number(self, study_id: str) -> int:
        """One above the highest number in use."""
        query = select(func.coalesce(func.max(TrialRow.number), -1)).where(TrialRow.study_id == study_id)
        return int(self._session.scalars(query).one()) + 1

    def first_queued(self, study_id: str) -> Trial | None:
        """The queued trial with the lowest number, locked; skips one that another replica has locked."""
        query = (
            select(TrialRow)
            .where(TrialRow.study_id == study_id, TrialRow.state == TrialState.QUEUED)
            .order_by(TrialRow.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        row = self._session.scalars(query).one_or_none()
        return None if row is None else trial_record(row)

    def running(self, study_id: str | None = None) -> list[Trial]:
        """Running trials (of one study, or of all)."""
        query = select(TrialRow).where(TrialRow.state == TrialState.RUNNING).order_by(TrialRow.id)
        if study_id is not None:
            query = query.where(TrialRow.study_id == study_id)
        return [trial_record(row) for row in self._session.scalars(query)]

    def set_state(
        self, trial: Trial, state: TrialState, now: datetime, kind: EventKind = EventKind.TRIAL_ENDED, **values: Any
    ) -> Trial:
        """Move a locked trial of a locked study to another state, and write other ``values`` with it.

        Returns the updated trial. ``values`` may include ``scores``, which is not part of the record.

        Raises:
            Conflict: the table of transitions does not allow it.
        """
        check_trial_transition(trial.state, state)
        if state is TrialState.RUNNING and trial.started_at is None:
            values["started_at"] = now
        values["finished_at"] = now if state in TRIAL_ENDED else None
        data = _moved(trial, state)
        if state in TRIAL_ENDED:
            data["metrics"] = values.get("metrics", trial.metrics)
            if values.get("failure") is not None:
                data["failure"] = asdict(values["failure"])
        values |= {"state": state, "version": Studies(self._session).touch(trial.study_id, kind, now, data)}
        self.write(trial.id, **values)
        Counts(self._session).change(trial.study_id, {(trial.phase, trial.state): -1, (trial.phase, state): 1})
        return replace(trial, **{name: value for name, value in values.items() if name != "scores"})

    def write(self, trial_id: str, **values: Any) -> None:
        """Write values of one trial's record."""
        if "failure" in values:
            failure: Failure | None = values.pop("failure")
            values["failure_kind"] = None if failure is None else failure.kind
            values["failure_message"] = None if failure is None else failure.message
        self._session.execute(update(TrialRow).where(TrialRow.id == trial_id).values(**values))

    def stop(self, trial: Trial, reason: StopReason, now: datetime) -> Trial:
        """Tell the runner of a locked trial to stop at its next report; returns the updated trial."""
        self.write(trial.id, stop_reason=reason)
        data = {"trial_id": trial.id, "number": trial.number, "reason": reason}
        Studies(self._session).touch(trial.study_id, EventKind.TRIAL_STOPPING, now, data)
        return replace(trial, stop_reason=reason)

    def stop_running(self, study_id: str, reason: StopReason) -> list[str]:
        """Tell the running trials of a locked study to stop at their next report; returns their ids."""
        query = (
            update(TrialRow)
            .where(TrialRow.study_id == study_id, TrialRow.state == TrialState.RUNNING, TrialRow.stop_reason.is_(None))
            .values(stop_reason=reason)
            .returning(TrialRow.id)
        )
        return list(self._session.scalars(query))

    def go_on(self, study_id: str) -> None:
        """Withdraw pauses that no runner has received yet."""
        self._session.execute(
            update(TrialRow)
            .where(
                TrialRow.study_id == study_id,
                TrialRow.state == TrialState.RUNNING,
                TrialRow.stop_reason == StopReason.PAUSED,
            )
            .values(stop_reason=None)
        )

    def cancel_queued(self, study_id: str, now: datetime) -> int:
        """Cancel the queued and the waiting trials of a locked study; returns how many."""
        queued = self.page(study_id, 1_000_000, None, [TrialState.QUEUED, TrialState.WAITING])
        self.end_all(study_id, queued, TrialState.CANCELLED, now)
        return len(queued)

    def end_all(self, study_id: str, trials: Sequence[Trial], state: TrialState, now: datetime) -> None:
        """Move trials of a locked study to one final state, in as many statements for all as for one.

        Raises:
            Conflict: the table of transitions does not allow it.
        """
        if not trials:
            return
        changes: Counter[tuple[TrialPhase, TrialState]] = Counter()
        for trial in trials:
            check_trial_transition(trial.state, state)
            changes.update({(trial.phase, state): 1})
            changes.subtract({(trial.phase, trial.state): 1})
        events = [(EventKind.TRIAL_ENDED, {**_moved(t, state), "metrics": t.metrics}) for t in trials]
        first = Studies(self._session).touch_all(study_id, now, events) - len(trials) + 1
        rows = [{"id": t.id, "state": state, "finished_at": now, "version": first + k} for k, t in enumerate(trials)]
        self._session.execute(update(TrialRow), rows)
        self._session.expire_all()
        Counts(self._session).change(study_id, changes)

    def supersede(self, study_id: str, now: datetime) -> None:
        """Detach the confirmation's trials when a search resumes: they stay, but without a candidate."""
        rows = self._session.scalars(
            select(TrialRow).where(
                TrialRow.study_id == study_id,
                TrialRow.phase.in_([TrialPhase.TUNING, TrialPhase.CONFIRMATION]),
                TrialRow.candidate.is_not(None),
            )
        )
        for row in rows:
            row.candidate = None
        self._session.flush()
