"""How many trainings a study makes, and how long what is left of it will take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..domain.records import Study, TrialCounts
from ..domain.states import TRIAL_ENDED, StudyPhase, TrialPhase
from ..domain.study_spec import RecheckSpec, StudySpec


@dataclass(frozen=True, slots=True)
class Workload:
    """Trainings by phase, at most, with the first look's seeds; trials that are pruned end sooner."""

    search: int
    recheck: int
    tuning: int
    confirmation: int

    @property
    def total(self) -> int:
        """All trainings."""
        return self.search + self.recheck + self.tuning + self.confirmation

    def told(self) -> str:
        """In words, without the phases that there are not."""
        parts = {
            "searched": self.search,
            "to recheck the best": self.recheck,
            "to tune learning rates": self.tuning,
            "to confirm": self.confirmation,
        }
        return f"up to {self.total} trainings: " + ", ".join(f"{n} {what}" for what, n in parts.items() if n)


def workload_of(spec: StudySpec, planned: int | None = None) -> Workload:
    """The trainings of a study; ``planned`` are its search trials where the space has fewer than it asks for."""
    search, compare = spec.search.trials if planned is None else planned, spec.compare
    asked = spec.search.recheck
    recheck = min(asked.top, search) * asked.seeds if isinstance(asked, RecheckSpec) and search > 1 else 0
    if not compare.first_seeds:
        return Workload(search, recheck, 0, 0)
    predicted = len(compare.predictors) + ("guideline" in compare.predictors)
    methods = len(spec.search_space.methods()) - 1
    candidates = 1 + min(compare.top - 1, max(0, search - 1)) + methods + predicted + len(compare.baselines)
    tuning = candidates * compare.tuning_trials if compare.learning_rate == "tuned" else 0
    return Workload(search, recheck, tuning, candidates * compare.first_seeds)


def seconds_left(study: Study, counts: TrialCounts, pace: float | None) -> float | None:
    """The wall time that a study will still take at ``pace`` (mean seconds of its trials); ``None`` without one."""
    if pace is None:
        return None
    ended: Mapping[TrialPhase, int] = {
        phase: sum(n for (p, state), n in counts.items() if p is phase and state in TRIAL_ENDED) for phase in TrialPhase
    }
    exact = {phase: sum(n for (p, _), n in counts.items() if p is phase) for phase in TrialPhase}
    work = workload_of(study.spec, study.planned)
    left = max(0, work.search - ended[TrialPhase.SEARCH])
    if study.phase is StudyPhase.CONFIRMATION:
        # What is queued is known; before the first run is confirmed, all of them are still to come.
        open_ = sum(exact[p] - ended[p] for p in (TrialPhase.TUNING, TrialPhase.CONFIRMATION))
        started = exact[TrialPhase.CONFIRMATION] > 0
        left = open_ + (0 if started else work.confirmation)
    else:
        recheck = max(work.recheck, exact[TrialPhase.RECHECK]) - ended[TrialPhase.RECHECK]
        left += max(0, recheck) + work.tuning + work.confirmation
    return left * pace / study.spec.search.concurrency
