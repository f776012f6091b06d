"""The configurations of a finished search that are worth training again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..domain.records import Observation
from ..domain.states import TrialState
from ..domain.study_spec import Direction, StudySpec
from .coordinates import distributions
from .cube import Cube
from .history import Configuration, History, configuration
from .policy import Problem
from .surrogate import fitted

# With fewer trials a model says no more than their values do.
_FEWEST = 6
# Fitting is cubic in the trials.
_MOST = 120
_MOST_RANKED = 1000


def shortlist(problem: Problem, searched: Sequence[Observation], count: int) -> list[Observation]:
    """The ``count`` most promising configurations of the completed trials, each as its best trial.

    First the one with the best value, then those whose full training a Gaussian process over all trials predicts to be
    best (:mod:`.surrogate`): a value that its neighbours do not bear out was in part luck. By value alone where the
    model has too little to go by.
    """
    ranked = by_value(searched, problem.spec)
    if not ranked:
        return []
    modelled = _by_model(problem, searched, ranked)
    return _once([ranked[0], *modelled, *ranked])[:count]


def by_value(searched: Sequence[Observation], spec: StudySpec) -> list[Observation]:
    """The completed trials, best first; of equal ones, the earliest."""
    objective = spec.objective
    sign = -1.0 if objective.direction is Direction.MAXIMIZE else 1.0
    values = {t.number: t.metrics.get(objective.metric, math.nan) for t in searched}
    done = [t for t in searched if t.state is TrialState.COMPLETED and math.isfinite(values[t.number])]
    return sorted(done, key=lambda t: (sign * values[t.number], t.number))


def _once(trials: Sequence[Observation]) -> list[Observation]:
    found: dict[Configuration, Observation] = {}
    for trial in trials:
        found.setdefault(configuration(trial.params), trial)
    return list(found.values())


def _by_model(problem: Problem, searched: Sequence[Observation], ranked: Sequence[Observation]) -> list[Observation]:
    """The completed trials of the space, best predicted first; none where there are too few."""
    space = distributions(problem.spec, problem.plan)
    kept = History.of(problem.spec.all_objectives, searched).selected(_MOST)
    seen = [(t, last) for t in kept if _is_inside(t, space) and (last := _last(t, problem)) is not None]
    # One that is predicted to be best has a good value, too, so the first thousand are enough.
    inside = [t for t in ranked[:_MOST_RANKED] if _is_inside(t, space)]
    if not space or len(seen) < _FEWEST or len({value for _, (_, value) in seen}) < 2:
        return []
    cube = Cube(space)
    sign = 1.0 if problem.spec.objective.direction is Direction.MAXIMIZE else -1.0
    surrogate = fitted(cube, [(t.point or {}, step, sign * value) for t, (step, value) in seen])
    mean, _ = surrogate.predict(np.array([cube.features(t.point or {}) for t in inside]))
    order = sorted(range(len(inside)), key=lambda k: (-mean[k], inside[k].number))
    return [inside[k] for k in order]


def _is_inside(trial: Observation, space: Mapping[str, object]) -> bool:
    return trial.point is not None and all(name in trial.point for name in space)


def _last(trial: Observation, problem: Problem) -> tuple[int, float] | None:
    """The last evaluation of a trial and its value; ``None`` if it has none that is finite.

    Where trials are pruned by another metric than the objective, only completed trials say something.
    """
    value = trial.metrics.get(problem.spec.objective.metric, math.nan)
    if trial.state is TrialState.COMPLETED and math.isfinite(value):
        return max(1, len(trial.curve)), value
    comparable = problem.spec.pruning_metric == problem.spec.objective.metric
    if comparable and trial.state in (TrialState.PRUNED, TrialState.WAITING) and trial.curve:
        last = trial.curve[-1]
        return (len(trial.curve), last) if math.isfinite(last) else None
    return None
