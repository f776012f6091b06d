"""Teams in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from ..domain.operation import Team, Usage
from ..domain.states import TrialState
from ..errors import NotFound
from .models import StudyCountRow, StudyRow, TeamRow


def _record(row: TeamRow) -> Team:
    return Team(
        id=row.id,
        name=row.name,
        created_at=row.created_at,
        weight=row.weight,
        max_running_trials=row.max_running_trials,
        max_gpus=row.max_gpus,
        max_studies=row.max_studies,
        max_storage_bytes=row.max_storage_bytes,
    )


class Teams:
    """Reads and writes teams in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, team: Team) -> None:
        """Record a new team. Names are unique: a taken name fails the flush."""
        self._session.add(TeamRow(id=team.id, name=team.name, created_at=team.created_at, weight=team.weight))
        self._session.flush()

    def find(self, name: str) -> Team | None:
        """The team of that name."""
        row = self._session.scalars(select(TeamRow).where(TeamRow.name == name)).one_or_none()
        return None if row is None else _record(row)

    def named(self, name: str) -> Team:
        """The team of that name.

        Raises:
            NotFound: there is none.
        """
        found = self.find(name)
        if found is None:
            raise NotFound(f"there is no team {name!r}")
        return found

    def get(self, team_id: str, *, lock: bool = False) -> Team:
        """The team, locked for this transaction if ``lock``.

        Raises:
            NotFound: there is none.
        """
        query = select(TeamRow).where(TeamRow.id == team_id).execution_options(populate_existing=True)
        row = self._session.scalars(query.with_for_update() if lock else query).one_or_none()
        if row is None:
            raise NotFound(f"there is no team {team_id}")
        return _record(row)

    def list(self) -> list[Team]:
        """Every team, the oldest first."""
        return [_record(row) for row in self._session.scalars(select(TeamRow).order_by(TeamRow.id))]

    def write(self, team_id: str, values: Mapping[str, Any]) -> None:
        """Write columns of a team."""
        self._session.execute(update(TeamRow).where(TeamRow.id == team_id).values(**values))

    def usage(self, team_ids: Sequence[str]) -> dict[str, Usage]:
        """The trials, CPUs and GPUs that teams use now."""
        running = (
            select(
                StudyRow.team_id,
                func.sum(StudyCountRow.count),
                func.sum(StudyCountRow.count * StudyRow.cpus),
                func.sum(StudyCountRow.count * StudyRow.gpus),
            )
            .join(StudyRow, StudyRow.id == StudyCountRow.study_id)
            .where(StudyCountRow.state == TrialState.RUNNING, StudyCountRow.count != 0, StudyRow.team_id.in_(team_ids))
            .group_by(StudyRow.team_id)
        )
        usage = dict.fromkeys(team_ids, Usage())
        for team_id, trials, cpus, gpus in self._session.execute(running):
            usage[team_id] = Usage(int(trials), float(cpus), float(gpus))
        return usage
