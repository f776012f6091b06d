"""Teams with their quotas and use, and the runners that serve them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.exc import IntegrityError

from ..context.context import Context
from ..db.audit import Audit
from ..db.leases import Leases
from ..db.retries import retried
from ..db.studies import Studies
from ..db.teams import Teams
from ..domain.ids import new_id
from ..domain.operation import RunnerSeen, Team, Usage
from ..domain.records import Principal
from ..errors import Conflict


def create_team(ctx: Context, caller: Principal, name: str, values: Mapping[str, Any]) -> Team:
    """Create a team.

    Raises:
        Conflict: the name is taken.
    """
    try:
        return _make(ctx, caller, name, values)
    except IntegrityError as error:
        raise Conflict(f"a team named {name!r} exists already") from error


@retried
def _make(ctx: Context, caller: Principal, name: str, values: Mapping[str, Any]) -> Team:
    now = ctx.clock()
    with ctx.db.write() as session:
        if Teams(session).find(name) is not None:
            raise Conflict(f"a team named {name!r} exists already")
        team = Team(new_id(now), name, now)
        Teams(session).add(team)
        if values:
            Teams(session).write(team.id, values)
        Audit(session).record(caller, now, "team.create", team.id, name=name, **values)
        return Teams(session).get(team.id)


@retried
def update_team(ctx: Context, caller: Principal, team_id: str, values: Mapping[str, Any]) -> Team:
    """Change a team's weight and quotas. Does not affect running trials.

    Raises:
        NotFound: there is none.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        Teams(session).get(team_id, lock=True)
        if values:
            Teams(session).write(team_id, values)
        Audit(session).record(caller, now, "team.update", team_id, **values)
        return Teams(session).get(team_id)


def list_teams(ctx: Context, team_id: str | None) -> list[tuple[Team, Usage]]:
    """Teams (the caller's own, or all for ``None``) with their current use."""
    with ctx.db.read() as session:
        teams = [t for t in Teams(session).list() if team_id in (None, t.id)]
        usage = Teams(session).usage([t.id for t in teams])
        studies = Studies(session)
        return [
            (t, replace(usage[t.id], open_studies=studies.open_count(t.id), storage_bytes=studies.storage(t.id)))
            for t in teams
        ]


def list_runners(ctx: Context, team_id: str | None) -> list[RunnerSeen]:
    """Runners that were seen within the last days, by name."""
    with ctx.db.read() as session:
        return Leases(session).runners(team_id)
