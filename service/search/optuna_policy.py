"""Search by Optuna, as a pure function of the recorded trials."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from ..domain.records import Trial
from ..domain.study_spec import Direction
from .coordinates import distributions, to_params
from .history import HistoryStorage, frozen
from .policy import Problem, Proposal
from .pruners import PRUNERS, rungs
from .samplers import SAMPLERS

optuna.logging.set_verbosity(optuna.logging.WARNING)


def derive_seed(study_seed: int, number: int) -> int:
    """The sampler's seed for one trial: fixed by (study seed, trial number), different for every number."""
    return int(np.random.SeedSequence((study_seed, number)).generate_state(1)[0])


class OptunaPolicy:
    """A ``SearchPolicy`` and ``StopRule``. Holds nothing that the history does not: only conversions are cached."""

    def __init__(self, cache_size: int = 20_000) -> None:
        self._converted: dict[tuple[Any, ...], FrozenTrial] = {}
        self._cache_size = cache_size

    def propose(self, problem: Problem, history: Sequence[Trial], number: int) -> Proposal:
        """See :class:`~service.search.policy.SearchPolicy`."""
        space = distributions(problem.spec, problem.plan)
        sampler = SAMPLERS[problem.spec.search.sampler](derive_seed(problem.spec.search.seed, number))
        study = self._study(problem, space, history, number, sampler=sampler)
        asked = study.ask(fixed_distributions=dict(space))
        point = dict(asked.params)
        return Proposal(to_params(point, problem.spec, problem.plan), point)

    def should_stop(self, problem: Problem, history: Sequence[Trial], trial: Trial) -> bool:
        """See :class:`~service.search.policy.StopRule`."""
        make = PRUNERS[problem.spec.search.pruner]
        if make is None or not trial.curve:
            return False
        space = distributions(problem.spec, problem.plan)
        others = [t for t in history if t.number != trial.number]
        study = self._study(problem, space, others, trial.number)
        metric = problem.spec.objective.metric
        judged = frozen(trial, space, metric, rungs(trial.curve, before=max(trial.curve)))
        study._storage._trials[trial.number] = judged  # type: ignore[attr-defined]  # our own HistoryStorage
        return make().prune(study, judged)

    def _study(
        self,
        problem: Problem,
        space: dict[str, BaseDistribution],
        history: Sequence[Trial],
        number: int,
        sampler: optuna.samplers.BaseSampler | None = None,
    ) -> optuna.Study:
        maximize = problem.spec.objective.direction is Direction.MAXIMIZE
        direction = optuna.study.StudyDirection.MAXIMIZE if maximize else optuna.study.StudyDirection.MINIMIZE
        trials = [self._frozen(problem, space, t) for t in history]
        storage = HistoryStorage(direction, trials, next_number=number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.load_study(
                study_name="history",
                storage=storage,
                sampler=sampler or optuna.samplers.RandomSampler(seed=0),
                pruner=optuna.pruners.NopPruner(),
            )

    def _frozen(self, problem: Problem, space: dict[str, BaseDistribution], trial: Trial) -> FrozenTrial:
        metric = problem.spec.objective.metric
        key = (trial.id, trial.state, trial.metrics.get(metric), tuple(trial.curve.items()))
        found = self._converted.get(key)
        if found is None:
            if len(self._converted) >= self._cache_size:
                self._converted.clear()
            found = self._converted[key] = frozen(trial, space, metric, rungs(trial.curve))
        return found
