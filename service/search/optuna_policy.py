"""Search by Optuna, as a pure function of the recorded trials."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import optuna
from cachetools import LRUCache
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from ..domain.records import UNRECORDED, Observation
from ..domain.study_spec import Direction, Objective
from .coordinates import LARGEST_GRID, distributions, grid, grid_size, is_finite, method_of, to_params
from .history import History
from .policy import Problem, Proposal, Verdict
from .pruners import PRUNERS, Halving
from .samplers import GRID, SAMPLERS, Ask
from .storage import HistoryStorage, frozen

optuna.logging.set_verbosity(optuna.logging.WARNING)
# Once for the process: catching warnings around each call is not safe between threads.
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
# If a proposal was tried before, ask again with another seed, up to this many times; then enumerate what is left.
REPEATED_ASKS = 8
# Random configurations to try where a large space has few that are allowed.
RANDOM_DRAWS = 50


def derive_seed(study_seed: int, number: int, repeated: int = 0) -> int:
    """The sampler's seed for one ask, derived from (study seed, trial number, repetition)."""
    entropy = (study_seed, number, repeated) if repeated else (study_seed, number)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _curve(seen: Observation, metric: str) -> FrozenTrial:
    """A trial as a pruner sees it: its evaluations."""
    value = seen.metrics.get(metric, seen.curve[-1] if seen.curve else None)
    return frozen(replace(seen, attrs=None), {}, None if value is None else [value])


class OptunaPolicy:
    """A ``SearchPolicy`` and ``StopRule``. Its only state is a cache of converted trials."""

    def __init__(self, cache_size: int = 20_000) -> None:
        self._converted: LRUCache[tuple[Any, ...], FrozenTrial] = LRUCache(cache_size)
        self._lock = Lock()

    def propose(self, problem: Problem, history: History, number: int) -> Proposal | None:
        """See :class:`~service.search.policy.SearchPolicy`."""
        space = distributions(problem.spec, problem.plan)
        proposal = None
        if problem.spec.search.sampler != GRID:
            for repeated in range(REPEATED_ASKS):
                proposal = self._ask(problem, space, history, number, repeated)
                if (allowed := self._allowed(problem, history, proposal)) is not None:
                    return allowed
            assert proposal is not None
            too_many = grid_size(problem.spec, problem.plan, 1) > LARGEST_GRID
            endless = too_many or not is_finite(problem.spec, [method_of(proposal.params)])
            if endless and not history.is_barred(proposal.params):
                return proposal
            if too_many or not is_finite(problem.spec):
                # Other configurations may be left, and cannot all be listed.
                for repeated in range(REPEATED_ASKS, REPEATED_ASKS + RANDOM_DRAWS):
                    drawn = self._ask(problem, space, history, number, repeated, "random")
                    if (allowed := self._allowed(problem, history, drawn)) is not None:
                        return allowed
            if too_many:
                return None
        return self._enumerated(problem, history, number)

    def _ask(
        self,
        problem: Problem,
        space: dict[str, BaseDistribution],
        history: History,
        number: int,
        repeated: int,
        sampler: str | None = None,
    ) -> Proposal:
        search = problem.spec.search
        kind = SAMPLERS[sampler or search.sampler]
        assert kind.make is not None
        options = kind.options.model_validate(search.sampler_options if sampler is None else {})
        seed = derive_seed(search.seed, number, repeated)
        place = number + repeated * 1_000_003 * (repeated > 0)
        prior = problem.plan.prior if search.prior == "predictors" else ()
        chosen = kind.make(options, Ask(search.seed, seed, place, space, prior))
        several = len(problem.spec.all_objectives) > 1
        found = history.selected(kind.history_limit)
        seen_trials = [self._frozen(problem.study_id, space, history, o, several) for o in found]
        # A configuration that somebody named may lie outside.
        trials = [t for t in seen_trials if len(t.params) == len(space)]
        study = self._study(problem.spec.all_objectives, trials, number, chosen)
        asked = study.ask(fixed_distributions=dict(space))
        seen = study._storage.get_trial(asked._trial_id)
        point = dict(asked.params)
        attrs = {k: v for k, v in seen.system_attrs.items() if isinstance(v, int)}
        return Proposal(to_params(point, problem.spec, problem.plan), point, attrs or None)

    def _allowed(self, problem: Problem, history: History, proposal: Proposal) -> Proposal | None:
        tried = history.times_tried(proposal.params)
        if tried >= problem.spec.search.replicates or history.is_barred(proposal.params):
            return None
        return replace(proposal, replicate=tried)

    def _enumerated(self, problem: Problem, history: History, number: int) -> Proposal | None:
        """A seeded random choice among the least tried grid points that are allowed; ``None`` if there are none."""
        search = problem.spec.search
        steps = SAMPLERS[GRID].options.model_validate(search.sampler_options if search.sampler == GRID else {})
        points = grid(problem.spec, problem.plan, getattr(steps, "steps", 1))
        proposals = [Proposal(to_params(p, problem.spec, problem.plan), p) for p in points]
        left = [a for p in proposals if (a := self._allowed(problem, history, p)) is not None]
        if not left:
            return None
        fewest = min(p.replicate for p in left)
        left = [p for p in left if p.replicate == fewest]
        return left[int(np.random.default_rng(derive_seed(search.seed, number)).integers(len(left)))]

    def judge(self, problem: Problem, history: History, number: int, evaluations: int) -> Verdict:
        """See :class:`~service.search.policy.StopRule`."""
        judged = history.get(number)
        if judged is None or not 1 <= evaluations <= len(judged.curve):
            return Verdict.CONTINUE
        cut = replace(judged, curve=judged.curve[:evaluations])
        others = [o for o in history.observations() if o.number != number]
        if (halving := Halving.of(problem.spec)) is not None:
            return halving.judge([cut, *others], number, evaluations)
        kind = PRUNERS[problem.spec.search.pruner]
        if kind.make is None:
            return Verdict.CONTINUE
        pruner = kind.make(kind.options.model_validate(problem.spec.search.pruner_options))
        metric = problem.spec.pruning_metric
        objective = Objective(metric=metric, direction=problem.spec.pruning_direction)
        current = _curve(cut, metric)
        trials = [current]
        for other in others:
            key = (problem.study_id, other.number, other.version, other.state, len(other.curve), "judged")
            trials.append(self._kept(key, partial(_curve, other, metric)))
        sampler = optuna.samplers.RandomSampler(seed=0)
        stops = pruner.prune(self._study([objective], trials, number, sampler), current)
        return Verdict.STOP if stops else Verdict.CONTINUE

    def promotions(self, problem: Problem, history: History) -> list[int]:
        """See :class:`~service.search.policy.StopRule`."""
        halving = Halving.of(problem.spec)
        return [] if halving is None else halving.promotions(history.observations())

    def _study(
        self,
        objectives: Sequence[Objective],
        trials: Sequence[FrozenTrial],
        number: int,
        sampler: optuna.samplers.BaseSampler,
    ) -> optuna.Study:
        directions = [
            StudyDirection.MAXIMIZE if o.direction is Direction.MAXIMIZE else StudyDirection.MINIMIZE
            for o in objectives
        ]
        storage = HistoryStorage(directions, trials, next_number=number)
        return optuna.load_study(
            study_name="history", storage=storage, sampler=sampler, pruner=optuna.pruners.NopPruner()
        )

    def _frozen(
        self, study_id: str, space: dict[str, BaseDistribution], history: History, seen: Observation, several: bool
    ) -> FrozenTrial:
        # A pruned trial has one value, its last evaluation; Optuna's multi-objective samplers do not accept it.
        key = (study_id, seen.number, seen.version, seen.state, len(seen.curve), several)
        plain = replace(seen, curve=()) if several else seen
        if seen.version == UNRECORDED:
            return frozen(plain, space, history.values(seen))
        return self._kept(key, lambda: frozen(plain, space, history.values(seen)))

    def _kept(self, key: tuple[Any, ...], convert: Callable[[], FrozenTrial]) -> FrozenTrial:
        with self._lock:
            found = self._converted.get(key)
        if found is None:
            found = convert()
            with self._lock:
                self._converted[key] = found
        return found
