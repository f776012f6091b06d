"""The studies that have work, read once for all requests that arrive together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..context.context import Context
from ..db.studies import Studies
from ..db.teams import Teams
from ..domain.operation import Team, Usage
from ..domain.records import StudyLoad
from ..tenancy.quotas import in_turn
from .demand import open_slots, running_trials
from .grants import Runner
from .hosts import quarantined


@dataclass(frozen=True, slots=True)
class Standing:
    """The studies of one team (or of all) that may have work, at one moment.

    ``teams`` and ``usage`` are empty if there is only one team, without quotas. ``barred`` holds the quarantined hosts
    among those of the asking runners, with their teams.
    """

    loads: Sequence[StudyLoad]
    teams: Mapping[str, Team]
    usage: Mapping[str, Usage]
    barred: set[tuple[str | None, str | None]]

    def in_turn(self, runner: Runner) -> list[StudyLoad]:
        """Studies that have work for a runner, in the order in which it should serve them."""
        if (runner.team_id, runner.host) in self.barred:
            return []
        running = {s.id: running_trials(s.counts) for s in self.loads}
        with_work = [
            s for s in self.loads if runner.shape.holds(s.shape) and running[s.id] < s.concurrency and open_slots(s) > 0
        ]
        return in_turn(with_work, running, self.teams, self.usage, runner.warm)


def look_at(ctx: Context, runners: Sequence[Runner]) -> Standing:
    """Read the studies that have work for runners of one team (or of all)."""
    with ctx.db.read() as session:
        barred = quarantined(session, [(r.team_id, r.host) for r in runners])
        loads = Studies(session).loads(runners[0].team_id)
        teams: dict[str, Team] = {}
        usage: dict[str, Usage] = {}
        if len({s.team_id for s in loads}) > 1 or any(s.limited for s in loads):
            teams = {team.id: team for team in Teams(session).list()}
            usage = Teams(session).usage(list(teams))
        return Standing(loads, teams, usage, barred)
