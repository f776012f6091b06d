"""Repeat the best trials of a search with further seeds, and choose the winner by the mean.

The best of many single runs is in part the luckiest: its value is too high, and another configuration may be better.
Repeating the few most promising ones costs less than it gains (``benchmarks/search.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from ..domain import seeds
from ..domain.records import NewTrial, Observation, Study, Trial
from ..domain.states import TRIAL_ENDED, TrialPhase, TrialState
from ..domain.study_spec import Direction, RecheckSpec, StudySpec
from ..search.coordinates import method_of
from ..search.history import Configuration, configuration
from ..search.policy import Problem
from ..search.shortlist import by_value, shortlist
from .confirmation import best_trial
from .structures import count


@dataclass(frozen=True, slots=True)
class Winner:
    """The best trial of a search, and its configuration's values: the trial's own, then those of its repetitions."""

    trial: Observation
    values: list[float]

    @property
    def mean(self) -> float:
        """By which it was chosen."""
        return mean(self.values)


def winner(searched: Sequence[Observation], repeated: Sequence[Trial], spec: StudySpec) -> Winner | None:
    """The best found; ``None`` if no search trial has finished with a value.

    It is the configuration with the best mean among the repeated ones, each counted from its search trials on. One of
    which a repetition ended without a value comes after all others. While the trial with the best value is not among
    them, or its repetitions have not all ended, or were cancelled, that trial is the best found.
    """
    metric, direction = spec.objective.metric, spec.objective.direction
    first = best_trial(searched, metric, direction)
    if first is None:
        return None
    found = _rechecked(searched, repeated, spec)
    if any(w.trial.params == first.params for w in found):
        return found[0]
    return Winner(first, [first.metrics[metric]])


def further(searched: Sequence[Observation], repeated: Sequence[Trial], spec: StudySpec) -> list[Observation]:
    """The ``compare.top - 1`` best configurations after the winner's: first the repeated ones, by mean."""
    won = winner(searched, repeated, spec)
    if won is None:
        return []
    ranked = [w.trial for w in _rechecked(searched, repeated, spec)] + by_value(searched, spec)
    once: dict[Configuration, Observation] = {}
    for trial in ranked:
        once.setdefault(configuration(trial.params), trial)
    return [t for t in once.values() if t.number != won.trial.number][: spec.compare.top - 1]


def _rechecked(searched: Sequence[Observation], repeated: Sequence[Trial], spec: StudySpec) -> list[Winner]:
    """The repeated configurations, best mean first; none before every repetition has ended by itself."""
    metric, direction = spec.objective.metric, spec.objective.direction
    if any(t.state not in TRIAL_ENDED or t.state is TrialState.CANCELLED for t in repeated):
        return []
    sign = -1.0 if direction is Direction.MAXIMIZE else 1.0
    runs: dict[Configuration, list[Trial]] = {}
    for trial in repeated:
        runs.setdefault(configuration(trial.params), []).append(trial)
    found: list[tuple[bool, float, int, Winner]] = []
    for mine in runs.values():
        params = mine[0].params
        own = [t for t in searched if t.params == params and t.state is TrialState.COMPLETED and metric in t.metrics]
        origin = best_trial(own, metric, direction)
        if origin is None:
            continue
        # The trial that put the configuration ahead comes first, then its other runs.
        others = [t.metrics[metric] for t in own if t.number != origin.number]
        values = [t.metrics[metric] for t in mine if t.state is TrialState.COMPLETED and metric in t.metrics]
        made = Winner(origin, [origin.metrics[metric], *others, *values])
        found.append((len(values) < len(mine), sign * made.mean, origin.number, made))
    return [entry[3] for entry in sorted(found, key=lambda entry: entry[:3])]


def recheck_trials(
    study: Study, searched: Sequence[Observation], repeated: Sequence[Trial], first_number: int
) -> list[NewTrial]:
    """The repetitions that the best configurations of a finished search still lack."""
    asked = study.spec.search.recheck
    if not isinstance(asked, RecheckSpec):
        return []
    best = shortlist(Problem(study.id, study.spec, study.plan), searched, asked.top)
    if len(best) < 2:
        return []  # there is nothing to choose between
    from_search = study.spec.search.replicates
    wanted = [seeds.repeated(study.spec.search.seed, from_search + k) for k in range(asked.seeds)]
    # Whoever stopped a repetition does not get it back.
    there = {(configuration(t.params), t.seed) for t in repeated}
    missing = [(t, seed) for t in best for seed in wanted if (configuration(t.params), seed) not in there]
    return [
        NewTrial(
            number=first_number + k,
            phase=TrialPhase.RECHECK,
            method=method_of(t.params),
            params=t.params,
            parameters=count(study.plan, method_of(t.params), t.params),
            seed=seed,
        )
        for k, (t, seed) in enumerate(missing)
    ]
