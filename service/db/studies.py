"""Studies and their predictions in SQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from itertools import groupby
from threading import Lock
from typing import Any, cast

from cachetools import LRUCache, cached
from sqlalchemy import ColumnElement, Table, and_, bindparam, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from ..domain.group_spec import Grouping
from ..domain.inputs import Inputs
from ..domain.plan import Plan
from ..domain.records import Candidate, Event, Study, StudyLoad
from ..domain.shape import Shape
from ..domain.states import (
    STUDY_ENDED,
    EventKind,
    StudyPhase,
    StudyState,
    TrialPhase,
    TrialState,
    check_study_transition,
)
from ..domain.study_spec import StudySpec
from ..errors import NotFound
from .events import add_deliveries, append_events
from .models import StudyCountRow, StudyRow, TeamRow, WebhookRow

# Built once: this runs with every change of a trial.
_STUDIES = cast(Table, StudyRow.__table__)
_TOUCH = (
    update(_STUDIES)
    .where(_STUDIES.c.id == bindparam("study"))
    .values(version=_STUDIES.c.version + bindparam("events"))
    .returning(
        _STUDIES.c.version,
        _STUDIES.c.team_id,
        exists().where(WebhookRow.team_id == _STUDIES.c.team_id, WebhookRow.active.is_(True)),
    )
)


# A spec is fixed by its study's revision; a plan never changes.
@cached(LRUCache(512), key=lambda row: (row.id, row.revision), lock=Lock())
def _parsed(row: StudyRow) -> tuple[StudySpec, Plan]:
    return StudySpec.model_validate(row.spec), Plan.model_validate(row.plan)


def study_record(row: StudyRow) -> Study:
    """The record of a row."""
    spec, plan = _parsed(row)
    return Study(
        id=row.id,
        team_id=row.team_id,
        name=row.name,
        state=StudyState(row.state),
        phase=StudyPhase(row.phase),
        reason=row.reason,
        spec=spec,
        plan=plan,
        candidates=[Candidate(**entry) for entry in row.candidates or []],
        version=row.version,
        revision=row.revision,
        planned=row.planned,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        storage_bytes=row.storage_bytes,
        gpu_seconds=row.gpu_seconds,
        inputs=None if row.inputs is None else Inputs.model_validate(row.inputs),
        group=None if row.grouping is None else Grouping.model_validate(row.grouping),
    )


def _scheduled(spec: StudySpec) -> dict[str, Any]:
    """The columns of a spec that scheduling needs."""
    shape = spec.resources.shape
    return {
        "name": spec.name,
        "spec": spec.model_dump(mode="json"),
        "priority": spec.priority,
        "concurrency": spec.search.concurrency,
        "planned": spec.search.trials,
        "cpus": shape.cpus,
        "gpus": shape.gpus,
        "shape": shape.as_dict(),
        "model_key": spec.model_key,
    }


class Studies:
    """Reads and writes studies in one session. Deleted studies are invisible."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, study: Study) -> Study:
        """Record a new study; returns it with its version."""
        row = StudyRow(
            id=study.id,
            team_id=study.team_id,
            state=study.state,
            phase=study.phase,
            reason=study.reason,
            plan=study.plan.model_dump(mode="json"),
            version=study.version,
            revision=study.revision,
            storage_bytes=0,
            gpu_seconds=0.0,
            created_at=study.created_at,
            group_id=None if study.group is None else study.group.id,
            grouping=None if study.group is None else study.group.model_dump(mode="json"),
            **_scheduled(study.spec),
        )
        self._session.add(row)
        self._session.flush()
        data = {"name": study.name, "state": study.state}
        return replace(study, version=self.touch(study.id, EventKind.STUDY_CREATED, study.created_at, data))

    def get(self, study_id: str, team_id: str | None = None, *, lock: bool = False) -> Study:
        """The study, locked for this transaction if ``lock``; ``team_id`` restricts it to one team.

        Raises:
            NotFound: there is none, or it belongs to another team.
        """
        query = select(StudyRow).where(StudyRow.id == study_id, StudyRow.deleted_at.is_(None), *_of(team_id))
        if lock:
            query = query.with_for_update()
        row = self._session.scalars(query.execution_options(populate_existing=True)).one_or_none()
        if row is None:
            raise NotFound(f"there is no study {study_id}")
        return study_record(row)

    def of_group(self, group_id: str, team_id: str | None = None) -> list[Study]:
        """The studies of a group in its order; ``team_id`` restricts them to one team.

        Raises:
            NotFound: there are none.
        """
        query = select(StudyRow).where(StudyRow.group_id == group_id, StudyRow.deleted_at.is_(None), *_of(team_id))
        found = [study_record(row) for row in self._session.scalars(query)]
        if not found:
            raise NotFound(f"there is no group {group_id}")
        return sorted(found, key=lambda s: s.group.position if s.group is not None else 0)

    def confirmed(self, team_id: str | None, limit: int) -> list[Study]:
        """The newest completed studies with candidates, at most ``limit``; ``team_id`` restricts them to one team."""
        query = (
            select(StudyRow)
            .where(
                StudyRow.state == StudyState.COMPLETED,
                StudyRow.phase == StudyPhase.CONFIRMATION,
                StudyRow.deleted_at.is_(None),
                *_of(team_id),
            )
            .order_by(StudyRow.id.desc())
            .limit(limit)
        )
        return [study for study in map(study_record, self._session.scalars(query)) if study.candidates]

    def record_inputs(self, study: Study, inputs: Inputs, now: datetime) -> None:
        """Record what a study's trials are trained on."""
        self._session.execute(
            update(StudyRow).where(StudyRow.id == study.id).values(inputs=inputs.model_dump(mode="json"))
        )
        used = {name: split.used for name, split in inputs.splits.items()}
        self.touch(study.id, EventKind.STUDY_INPUTS, now, {"used": used, "notes": list(inputs.notes)})

    def page(
        self, team_id: str | None, limit: int, after: str | None, where: Sequence[ColumnElement[bool]], ascending: bool
    ) -> list[Study]:
        """Studies of a team (of all teams for ``None``) by age; only those after the study ``after``, if given."""
        order = StudyRow.id.asc() if ascending else StudyRow.id.desc()
        query = (
            select(StudyRow).where(StudyRow.deleted_at.is_(None), *_of(team_id), *where).order_by(order).limit(limit)
        )
        if after is not None:
            query = query.where(StudyRow.id > after if ascending else StudyRow.id < after)
        return [study_record(row) for row in self._session.scalars(query)]

    def loads(self, team_id: str | None) -> list[StudyLoad]:
        """Studies (of one team, or of all) that may have work, oldest first: columns for scheduling, and counts."""
        query = (
            select(
                StudyRow.id,
                StudyRow.team_id,
                StudyRow.state,
                StudyRow.phase,
                StudyRow.priority,
                StudyRow.concurrency,
                StudyRow.planned,
                StudyRow.cpus,
                StudyRow.gpus,
                StudyRow.shape,
                StudyRow.model_key,
                StudyRow.version,
                StudyRow.revision,
                or_(TeamRow.max_running_trials.is_not(None), TeamRow.max_gpus.is_not(None)).label("limited"),
                StudyCountRow.phase.label("of_phase"),
                StudyCountRow.state.label("in_state"),
                StudyCountRow.count,
            )
            .join(TeamRow, TeamRow.id == StudyRow.team_id)
            .outerjoin(StudyCountRow, and_(StudyCountRow.study_id == StudyRow.id, StudyCountRow.count != 0))
            .where(
                StudyRow.state.in_([StudyState.QUEUED, StudyState.RUNNING]),
                StudyRow.deleted_at.is_(None),
                *_of(team_id),
            )
            .order_by(StudyRow.id)
        )
        loads = []
        for _, (first, *others) in _by_study(self._session.execute(query)):
            counted = [r for r in (first, *others) if r.count is not None]
            loads.append(
                StudyLoad(
                    id=first.id,
                    team_id=first.team_id,
                    state=StudyState(first.state),
                    phase=StudyPhase(first.phase),
                    priority=first.priority,
                    concurrency=first.concurrency,
                    planned=first.planned,
                    shape=Shape.of(first.shape) if first.shape else Shape(first.cpus, first.gpus),
                    model_key=first.model_key,
                    version=first.version,
                    revision=first.revision,
                    counts={(TrialPhase(r.of_phase), TrialState(r.in_state)): r.count for r in counted},
                    limited=bool(first.limited),
                )
            )
        return loads

    def open_with_limits(self) -> list[Study]:
        """Running studies with limits, oldest first."""
        query = select(StudyRow).where(StudyRow.state == StudyState.RUNNING, StudyRow.deleted_at.is_(None))
        found = [study_record(row) for row in self._session.scalars(query.order_by(StudyRow.id))]
        return [s for s in found if any(v is not None for v in s.spec.limits.model_dump().values())]

    def open_count(self, team_id: str) -> int:
        """How many studies of a team have not ended."""
        query = select(func.count()).where(
            StudyRow.team_id == team_id, StudyRow.deleted_at.is_(None), StudyRow.state.not_in(STUDY_ENDED)
        )
        return int(self._session.scalar(query) or 0)

    def storage(self, team_id: str) -> int:
        """Bytes of a team's artifacts, including deleted studies that are not purged yet."""
        query = select(func.coalesce(func.sum(StudyRow.storage_bytes), 0)).where(StudyRow.team_id == team_id)
        return int(self._session.scalar(query) or 0)

    def set_state(self, study: Study, state: StudyState, now: datetime, reason: str | None = None) -> Study:
        """Move a locked study to another state; returns the updated study.

        Raises:
            Conflict: the table of transitions does not allow it.
        """
        check_study_transition(study.state, state)
        values: dict[str, Any] = {"state": state, "reason": reason}
        if state is StudyState.RUNNING and study.started_at is None:
            values["started_at"] = now
        values["finished_at"] = now if state in STUDY_ENDED else None
        self._write(study.id, **values)
        data = {"state": state, "was": study.state, "reason": reason}
        version = self.touch(study.id, EventKind.STUDY_STATE, now, data)
        return replace(study, version=version, **values)

    def set_phase(self, study: Study, phase: StudyPhase, now: datetime) -> Study:
        """Move a locked study to another phase; returns the updated study."""
        self._write(study.id, phase=phase)
        version = self.touch(study.id, EventKind.STUDY_PHASE, now, {"phase": phase})
        return replace(study, version=version, phase=phase)

    def set_spec(self, study: Study, spec: StudySpec, now: datetime, changed: Mapping[str, Any]) -> Study:
        """Record a user's changes to a locked study; returns the updated study."""
        # Fewer trials may be planned than the spec asks for, if the space is smaller.
        planned = spec.search.trials if "trials" in changed else study.planned
        revision = study.revision + 1
        self._write(study.id, **_scheduled(spec) | {"planned": planned, "revision": revision})
        version = self.touch(study.id, EventKind.STUDY_UPDATED, now, dict(changed))
        return replace(study, name=spec.name, spec=spec, planned=planned, revision=revision, version=version)

    def set_planned(self, study: Study, planned: int) -> Study:
        """Plan fewer search trials than a locked study asks for, because the space is smaller."""
        self._write(study.id, planned=planned)
        return replace(study, planned=planned)

    def set_candidates(self, study: Study, candidates: Sequence[Candidate]) -> Study:
        """Record the candidates of a locked study's confirmation."""
        self._write(study.id, candidates=[asdict(c) for c in candidates])
        return replace(study, candidates=list(candidates))

    def spend(self, study_id: str, gpu_seconds: float, storage_bytes: int) -> None:
        """Add an attempt's GPU time and stored bytes."""
        self._write(
            study_id,
            gpu_seconds=StudyRow.gpu_seconds + gpu_seconds,
            storage_bytes=StudyRow.storage_bytes + storage_bytes,
        )

    def mark_deleted(self, study_id: str, now: datetime) -> None:
        """Mark a study as deleted."""
        self._write(study_id, deleted_at=now)

    def deleted_before(self, moment: datetime) -> list[str]:
        """The ids of studies that were deleted before ``moment``."""
        return list(self._session.scalars(select(StudyRow.id).where(StudyRow.deleted_at < moment)))

    def purge(self, study_id: str) -> None:
        """Remove a deleted study and everything that belongs to it."""
        self._session.execute(delete(StudyRow).where(StudyRow.id == study_id, StudyRow.deleted_at.is_not(None)))

    def _write(self, study_id: str, **values: Any) -> None:
        self._session.execute(update(StudyRow).where(StudyRow.id == study_id).values(**values))

    def touch(self, study_id: str, kind: EventKind, now: datetime, data: Mapping[str, Any]) -> int:
        """Record an event of a locked study. Returns its number, the study's new version."""
        return self.touch_all(study_id, now, [(kind, data)])

    def touch_all(self, study_id: str, now: datetime, events: Sequence[tuple[EventKind, Mapping[str, Any]]]) -> int:
        """Record events of a locked study, in order. Returns the last one's number, the study's new version."""
        said = {"study": study_id, "events": len(events)}
        version, team_id, heard = self._session.connection().execute(_TOUCH, said).one()
        first = int(version) - len(events) + 1
        made = [Event(study_id, first + k, kind, now, dict(data)) for k, (kind, data) in enumerate(events)]
        append_events(self._session, made)
        if heard and (told := [e for e in made if e.kind != EventKind.TRIAL_REPORTED]):
            add_deliveries(self._session, team_id, told)
        return int(version)

    def versions(self, study_ids: Sequence[str]) -> dict[str, int]:
        """The versions of studies."""
        query = select(StudyRow.id, StudyRow.version).where(StudyRow.id.in_(study_ids))
        return {row.id: row.version for row in self._session.execute(query)}


def _by_study(rows: Iterable[Any]) -> Iterator[tuple[str, Iterator[Any]]]:
    return groupby(rows, key=lambda row: row.id)


def _of(team_id: str | None) -> list[ColumnElement[bool]]:
    return [] if team_id is None else [StudyRow.team_id == team_id]


def with_text(text: str | None, states: Sequence[StudyState]) -> list[ColumnElement[bool]]:
    """Query conditions for studies whose name contains ``text`` (ignoring case) and whose state is in ``states``."""
    conditions: list[ColumnElement[bool]] = []
    if text:
        conditions.append(StudyRow.name.icontains(text, autoescape=True))
    if states:
        conditions.append(StudyRow.state.in_(states))
    return conditions
