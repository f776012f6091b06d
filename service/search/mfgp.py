"""Search with a Gaussian process that learns from trials of every length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, Field
from scipy import stats

from ..domain.ranges import STRICT
from .coordinates import PAIR
from .cube import Cube, steps_of, value_at
from .surrogate import Surrogate, fitted


class MfgpOptions(BaseModel):
    """Gaussian process over configurations and training length, with expected improvement.

    The first ``n_startup_trials`` are a low-discrepancy sequence.
    """

    model_config = STRICT
    n_startup_trials: Annotated[int, Field(ge=1, le=1000)] = 4


# Candidates whose expected improvement is computed: spread over the space, and around the best points.
_SPREAD, _NEAR = 9, 24
_BEST, _ROUNDS = 6, 3
# What a prior counts for, in trials; and what keeps its order where no improvement is expected.
_TRUST, _LEAST = 3.0, 1e-12
# Of more running trials, the newest count: fitting is cubic in the trials.
_MOST_RUNNING = 100


class MfgpSampler(BaseSampler):
    """Proposes where the expected improvement over the best predicted full training is largest.

    A trial that is running counts as if it turned out as predicted, so that several runners do not ask for the same.
    ``prior`` rates the pairs (r1, r2) from 0 to 1. As in piBO (Hvarfner et al., ICLR 2022), the improvement is
    multiplied by the rating to the power of ``_TRUST / n`` after n trials: so the more is known, the less it counts.
    """

    def __init__(
        self,
        options: MfgpOptions,
        study_seed: int,
        seed: int,
        number: int,
        space: Mapping[str, Any],
        prior: Sequence[float] = (),
    ) -> None:
        self._options = options
        self._study_seed, self._seed, self._number = study_seed, seed, number
        self._cube = Cube(space)
        pairs = list(steps_of(space[PAIR]) or ()) if PAIR in space else []
        self._prior = np.array(prior, dtype=float) if len(pairs) == len(prior) else np.array([])
        self._trust = 0.0

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space."""
        return self._cube.space

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Of a parameter that is not in the space: there is none."""
        return value_at(param_distribution, float(np.random.default_rng(self._seed).random()))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next point."""
        if not search_space:
            return {}
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        running = [t for t in trials if t.state is TrialState.RUNNING][-_MOST_RUNNING:]
        ended = [t for t in trials if t.state is not TrialState.RUNNING]
        seen = [(t, last) for t in (*ended, *running) if (last := _last(t)) is not None]
        if len(seen) < self._options.n_startup_trials:
            return self._cube.point(self._start(self._number))
        sign = 1.0 if study.direction is StudyDirection.MAXIMIZE else -1.0
        surrogate = fitted(self._cube, [(t.params, step, sign * value) for t, (step, value) in seen])
        known = np.array([self._cube.features(t.params) for t, _ in seen])
        # What runs with values is known as far as it got; its end is still believed.
        if running:
            surrogate = surrogate.believed(np.array([self._cube.features(t.params) for t in running]))
        places = [self._cube.places(t.params) for t, _ in seen]
        self._trust = _TRUST / len(seen)
        return self._cube.point(self._best(surrogate, known, places))

    def _start(self, number: int) -> np.ndarray:
        """The point of the study's sequence at this place."""
        sampler = stats.qmc.Sobol(self._cube.width, scramble=True, rng=np.random.default_rng(self._study_seed))
        # A configuration that was tried before is asked for again with a number beyond a million.
        if number:
            sampler.fast_forward(number)
        return np.asarray(sampler.random(1)[0], dtype=float)

    def _sequence(self, seed: int, count: int) -> np.ndarray:
        sampler = stats.qmc.Sobol(self._cube.width, scramble=True, rng=np.random.default_rng(seed))
        return np.asarray(sampler.random_base2(max(1, math.ceil(math.log2(count)))), dtype=float)

    def _best(self, surrogate: Surrogate, known: np.ndarray, places: Sequence[Sequence[float]]) -> np.ndarray:
        random = np.random.default_rng(self._seed)
        predicted, _ = surrogate.predict(known)
        incumbent = float(predicted.max())
        best_known = np.argsort(-predicted, kind="stable")[:_BEST]
        around = np.array([places[k] for k in best_known])
        candidates = np.vstack([self._sequence(self._seed, 1 << _SPREAD), self._moved(around, 0.1, random)])
        width = 0.1
        for _ in range(_ROUNDS):
            gains = self._improvement(surrogate, candidates, incumbent)
            best = candidates[np.argsort(-gains, kind="stable")[:_BEST]]
            width /= 2
            candidates = np.vstack([best, self._moved(best, width, random)])
        gains = self._improvement(surrogate, candidates, incumbent)
        return np.asarray(candidates[int(np.argmax(gains))])

    def _moved(self, points: np.ndarray, width: float, random: np.random.Generator) -> np.ndarray:
        """Points around others: one parameter of each moved, or all."""
        repeated = np.repeat(points, _NEAR, axis=0)
        moved = repeated + random.normal(0.0, width, repeated.shape)
        alone = random.integers(self._cube.width, size=len(repeated))
        single = repeated.copy()
        rows = np.arange(len(repeated))
        single[rows, alone] = random.random(len(repeated))
        return np.asarray(np.clip(np.vstack([moved, single]), 0.0, 1.0))

    def _improvement(self, surrogate: Surrogate, places: np.ndarray, incumbent: float) -> np.ndarray:
        """Expected improvement (Jones et al. 1998) over the incumbent."""
        features = np.array([self._cube.features(self._cube.point(p)) for p in places])
        mean, deviation = surrogate.predict(features)
        z = (mean - incumbent) / deviation
        gain = np.asarray(deviation * (z * stats.norm.cdf(z) + stats.norm.pdf(z)))
        if not len(self._prior):
            return gain
        chosen = [self._cube.point(p)[PAIR] for p in places]
        return np.asarray((gain + _LEAST) * self._prior[chosen] ** self._trust)


def _last(trial: FrozenTrial) -> tuple[int, float] | None:
    """The last evaluation of a trial and its value; ``None`` if it has none that is finite."""
    if trial.state is TrialState.FAIL:
        return None
    steps = [step for step, value in trial.intermediate_values.items() if math.isfinite(value)]
    if trial.state is TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value):
        return max(steps, default=1), float(trial.value)
    return (max(steps), trial.intermediate_values[max(steps)]) if steps else None
