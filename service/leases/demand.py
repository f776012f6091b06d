"""How many runners are needed, by shape. The pool keeps that many."""

from __future__ import annotations

from dataclasses import dataclass

from ..context.context import Context
from ..db.studies import Studies
from ..db.teams import Teams
from ..domain.records import StudyLoad, TrialCounts
from ..domain.shape import Shape
from ..domain.states import StudyPhase, TrialState
from ..studies.progress import search_trials


def running_trials(counts: TrialCounts) -> int:
    """The number of running trials."""
    return sum(n for (_, state), n in counts.items() if state is TrialState.RUNNING)


def queued_trials(counts: TrialCounts) -> int:
    """The number of queued trials."""
    return sum(n for (_, state), n in counts.items() if state is TrialState.QUEUED)


def open_slots(study: StudyLoad) -> int:
    """The number of trials of a study that are queued or not proposed yet."""
    asked = max(0, study.planned - search_trials(study.counts)) if study.phase is StudyPhase.SEARCH else 0
    return queued_trials(study.counts) + asked


@dataclass(frozen=True, slots=True)
class Demand:
    """How many runners of one shape have work, including those that already run."""

    shape: Shape
    slots: int


def demand(ctx: Context, team_id: str | None = None) -> list[Demand]:
    """Slots by resource shape.

    Counts the trials of each study that run or could run now, at most its concurrency and its team's quota.
    """
    with ctx.db.read() as session:
        loads = Studies(session).loads(team_id)
        teams = {team.id: team for team in Teams(session).list()} if loads else {}
    slots: dict[Shape, int] = {}
    left = {t.id: (t.max_running_trials, t.max_gpus) for t in teams.values()}
    for study in loads:
        wanted = min(running_trials(study.counts) + open_slots(study), study.concurrency)
        trials_left, gpus_left = left[study.team_id]
        if trials_left is not None:
            wanted = min(wanted, trials_left)
        gpus = study.shape.gpus
        if gpus_left is not None and gpus > 0:
            wanted = min(wanted, int(gpus_left / gpus + 1e-9))
        left[study.team_id] = (
            None if trials_left is None else trials_left - wanted,
            None if gpus_left is None else gpus_left - wanted * gpus,
        )
        slots[study.shape] = slots.get(study.shape, 0) + wanted
    return [Demand(shape, n) for shape, n in sorted(slots.items()) if n > 0]
