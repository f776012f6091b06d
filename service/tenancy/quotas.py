"""Quotas of teams, and fair shares among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from ..db.studies import Studies
from ..db.teams import Teams
from ..domain.operation import Team, Usage
from ..domain.records import StudyLoad
from ..errors import QuotaExceeded

# One GPU counts as this many CPUs in shares.
CPUS_PER_GPU = 8.0


def trial_fault(team: Team, usage: Usage, gpus: float) -> str | None:
    """Why the team may not start another trial with that many GPUs; ``None`` if it may."""
    if team.max_running_trials is not None and usage.running_trials >= team.max_running_trials:
        return f"team {team.name!r} runs {usage.running_trials} of {team.max_running_trials} trials at once"
    if team.max_gpus is not None and usage.gpus + gpus > team.max_gpus + 1e-9:
        return f"team {team.name!r} holds {usage.gpus:g} of {team.max_gpus:g} GPUs and a trial takes {gpus:g}"
    return None


def require_room_for_study(session: Session, team_id: str) -> None:
    """Reject a new study if the team's quota is used up. Locks the team's row.

    Raises:
        QuotaExceeded: naming the quota and what is used of it.
    """
    team = Teams(session).get(team_id, lock=True)
    if team.max_studies is not None and (used := Studies(session).open_count(team_id)) >= team.max_studies:
        raise QuotaExceeded(
            f"team {team.name!r} has {used} of {team.max_studies} studies that have not ended; "
            "wait for one, cancel one, or ask an admin for more"
        )
    if team.max_storage_bytes is not None and (kept := Studies(session).storage(team_id)) >= team.max_storage_bytes:
        raise QuotaExceeded(
            f"team {team.name!r} keeps {kept:,} of {team.max_storage_bytes:,} bytes of artifacts; "
            "delete studies, or ask an admin for more"
        )


def room_for_trials(session: Session, load: StudyLoad, wanted: int, *, lock: bool) -> int:
    """How many of ``wanted`` further trials the study's team may start.

    ``lock`` locks the team's row if it has quotas, so that the answer holds until the commit.
    """
    team = Teams(session).get(load.team_id)
    if team.max_running_trials is None and team.max_gpus is None:
        return wanted
    if lock:
        team = Teams(session).get(load.team_id, lock=True)
    usage = Teams(session).usage([team.id])[team.id]
    if team.max_running_trials is not None:
        wanted = min(wanted, team.max_running_trials - usage.running_trials)
    if team.max_gpus is not None and load.shape.gpus > 0:
        wanted = min(wanted, int((team.max_gpus - usage.gpus) / load.shape.gpus + 1e-9))
    return max(0, wanted)


def in_turn(
    loads: Sequence[StudyLoad],
    running: Mapping[str, int],
    teams: Mapping[str, Team],
    usage: Mapping[str, Usage],
    warm: Sequence[str],
) -> list[StudyLoad]:
    """Studies in the order in which a runner should serve them.

    ``teams`` and ``usage`` may be empty if there is only one team, without quotas.

    Teams are sorted by what they hold relative to their weight, least first. Within a team: priority, then studies that
    no runner serves, then studies whose model the runner holds, then age. A team whose trial has just ended holds less
    than the others, so its runner stays with it and keeps its model.
    """

    def share(team_id: str) -> float:
        used = usage.get(team_id, Usage())
        return (used.cpus + CPUS_PER_GPU * used.gpus) / teams[team_id].weight if team_id in teams else 0.0

    allowed = [
        s for s in loads if not s.limited or trial_fault(teams[s.team_id], usage[s.team_id], s.shape.gpus) is None
    ]
    return sorted(
        allowed,
        key=lambda s: (share(s.team_id), -s.priority, running.get(s.id, 0) > 0, s.model_key not in warm, s.id),
    )
