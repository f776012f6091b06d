"""The samplers by name, with their options.

A new sampler is created for every ask, seeded by (study seed, trial number). All it knows is the history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import cmaes
import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, Field

from ..domain.ranges import STRICT
from .cube import place_of, value_at
from .mfgp import MfgpOptions, MfgpSampler
from .policy import NoOptions

Share = Annotated[float, Field(ge=0, le=1)]
# A sampler sees at most this many finished trials: the best (a quarter of this number) and the most recent.
HISTORY_LIMIT = 2_000


class TpeOptions(BaseModel):
    """Tree-structured Parzen estimator (multivariate, with constant liar for running trials)."""

    model_config = STRICT
    # Few start-up trials: adapter studies are short, and Optuna's default of 10 would be half of one.
    n_startup_trials: Annotated[int, Field(ge=0, le=1000)] = 5
    n_ei_candidates: Annotated[int, Field(ge=1, le=1000)] = 24


class GridOptions(BaseModel):
    """``steps`` values of every range of real numbers, spread evenly."""

    model_config = STRICT
    steps: Annotated[int, Field(ge=1, le=100)] = 4


class QmcOptions(BaseModel):
    """Quasi-Monte Carlo: one scrambled low-discrepancy sequence over the study's trial numbers."""

    model_config = STRICT
    sequence: Literal["sobol", "halton"] = "sobol"


class GpOptions(BaseModel):
    """Gaussian process with expected improvement."""

    model_config = STRICT
    n_startup_trials: Annotated[int, Field(ge=1, le=1000)] = 5
    deterministic_objective: bool = False


class CmaesOptions(BaseModel):
    """Covariance matrix adaptation; ``sigma0`` is the initial step size as a share of the space."""

    model_config = STRICT
    population_size: Annotated[int, Field(ge=3, le=1000)] | None = None
    sigma0: Annotated[float, Field(gt=0, le=1)] = 0.3


class Nsga2Options(BaseModel):
    """Genetic search by non-dominated sorting."""

    model_config = STRICT
    population_size: Annotated[int, Field(ge=2, le=1000)] = 16
    crossover_prob: Share = 0.9
    swapping_prob: Share = 0.5


Space = Mapping[str, BaseDistribution]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a sampler is made for: the study's seed, the ask's own, the trial's number, the space, and a prior.

    ``prior`` rates each pair (r1, r2) from 0 to 1; it is empty if there is none.
    """

    study_seed: int
    seed: int
    number: int
    space: Space
    prior: Sequence[float] = ()


# Makes a sampler from its options.
Maker = Callable[[Any, Ask], BaseSampler]


@dataclass(frozen=True, slots=True)
class SamplerKind:
    """A sampler as the catalog lists it."""

    name: str
    summary: str
    options: type[BaseModel]
    make: Maker | None
    multi_objective: bool = True
    history_limit: int = HISTORY_LIMIT


class _WholeSpace(BaseSampler):
    """Samples in the whole space. Optuna would infer it anew from every trial, at each ask; here it is known."""

    space: Space

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The study's space."""
        return dict(sorted(self.space.items()))


class _TpeSampler(_WholeSpace, optuna.samplers.TPESampler):
    pass


class _GpSampler(_WholeSpace, optuna.samplers.GPSampler):
    pass


class _GeneticSampler(_WholeSpace, optuna.samplers.NSGAIISampler):
    pass


def _within(sampler: _WholeSpace, space: Space) -> BaseSampler:
    sampler.space = space
    return sampler


def _tpe(options: TpeOptions, ask: Ask) -> BaseSampler:
    sampler = _TpeSampler(
        seed=ask.seed,
        n_startup_trials=options.n_startup_trials,
        n_ei_candidates=options.n_ei_candidates,
        multivariate=True,
        constant_liar=True,
    )
    return _within(sampler, ask.space)


def _random(options: NoOptions, ask: Ask) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=ask.seed)


def _gp(options: GpOptions, ask: Ask) -> BaseSampler:
    sampler = _GpSampler(
        seed=ask.seed,
        n_startup_trials=options.n_startup_trials,
        deterministic_objective=options.deterministic_objective,
        independent_sampler=optuna.samplers.RandomSampler(seed=ask.seed),
    )
    return _within(sampler, ask.space)


def _nsga2(options: Nsga2Options, ask: Ask) -> BaseSampler:
    return _within(_GeneticSampler(seed=ask.seed, **options.model_dump()), ask.space)


def _qmc(options: QmcOptions, ask: Ask) -> BaseSampler:
    return _SequenceSampler(options.sequence, ask.study_seed, ask.number, ask.space)


class _SequenceSampler(optuna.samplers.QMCSampler):
    """Optuna's sampler, but the trial's number is its position in the sequence, instead of a counter of its own."""

    def __init__(self, sequence: str, seed: int, number: int, space: Space) -> None:
        super().__init__(qmc_type=sequence, scramble=True, seed=seed, warn_asynchronous_seeding=False)
        self._number = number
        self._space = dict(space)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space, from the first trial on."""
        return self._space

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number


class _CmaSampler(BaseSampler):
    """CMA-ES on the unit cube, replayed from the finished trials, each marked with its generation.

    Optuna's own sampler keeps a pickled optimizer in the storage; here it is rebuilt from the history. Categories
    (numbers written as choices) are treated as ordered steps.
    """

    GENERATION = "cmaes:generation"

    def __init__(self, options: CmaesOptions, study_seed: int, seed: int, space: Space) -> None:
        self._space = dict(sorted(space.items()))
        self._seed = seed
        self._study_seed = study_seed
        self._options = options

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        width = max(2, len(search_space))  # the library needs two dimensions; a padded one is ignored
        # Samples stay within the unit cube; value_at maps them to values.
        optimizer = cmaes.CMA(
            mean=np.full(width, 0.5),
            sigma=self._options.sigma0,
            bounds=np.tile([[0.0, 1.0]], (width, 1)),
            seed=self._study_seed,
            population_size=self._options.population_size,
        )
        sign = -1.0 if study.direction is StudyDirection.MAXIMIZE else 1.0
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        while True:
            members = [t for t in finished if t.system_attrs.get(self.GENERATION) == optimizer.generation]
            if len(members) < optimizer.population_size or optimizer.should_stop():
                break
            told = sorted(members, key=lambda t: t.number)[: optimizer.population_size]
            optimizer.tell([(self._vector(t.params, width), sign * float(t.value or 0.0)) for t in told])
        optimizer.reseed_rng(self._seed)
        study._storage.set_trial_system_attr(trial._trial_id, self.GENERATION, optimizer.generation)
        return self._values(optimizer.ask())

    def _vector(self, params: Mapping[str, Any], width: int) -> np.ndarray:
        places = [place_of(distribution, params[name]) for name, distribution in self._space.items()]
        return np.array([*places, *[0.5] * (width - len(places))])

    def _values(self, vector: np.ndarray) -> dict[str, Any]:
        return {name: value_at(d, float(x)) for (name, d), x in zip(self._space.items(), vector, strict=False)}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return value_at(param_distribution, float(np.random.default_rng(self._seed).random()))


def _mfgp(options: MfgpOptions, ask: Ask) -> BaseSampler:
    return MfgpSampler(options, ask.study_seed, ask.seed, ask.number, ask.space, ask.prior)


def _cmaes(options: CmaesOptions, ask: Ask) -> BaseSampler:
    return _CmaSampler(options, ask.study_seed, ask.seed, ask.space)


class _AutoSampler(BaseSampler):
    """``mfgp`` for one objective and up to ``MOST_MODELLED`` trials with results, and ``tpe`` beyond."""

    def __init__(self, first: BaseSampler, beyond: BaseSampler) -> None:
        self._first, self._beyond = first, beyond

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space."""
        return self._first.infer_relative_search_space(study, trial)

    def _sampler(self, study: Study) -> BaseSampler:
        if len(study.directions) > 1:
            return self._beyond
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return self._first if len(ended) <= MOST_MODELLED else self._beyond

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The proposal of the sampler whose turn it is."""
        return self._sampler(study).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Of a parameter that is not in the space: there is none."""
        return self._first.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """As the sampler whose turn it is."""
        self._sampler(study).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As the sampler whose turn it is."""
        self._sampler(study).after_trial(study, trial, state, values)


def _auto(options: TpeOptions, ask: Ask) -> BaseSampler:
    modelled = MfgpOptions(n_startup_trials=max(1, options.n_startup_trials))
    return _AutoSampler(_mfgp(modelled, ask), _tpe(options, ask))


# The policy itself walks the grid: all it needs from the history is what was tried.
GRID = "grid"
# Fitting mfgp's process is cubic in the trials: 0.1 s at 100.
MOST_MODELLED = 100
SAMPLERS: dict[str, SamplerKind] = {
    kind.name: kind
    for kind in (
        SamplerKind("auto", "mfgp for up to 100 trials and one objective, else tpe; the default", TpeOptions, _auto),
        SamplerKind("tpe", "tree-structured Parzen estimator, quick at any number of trials", TpeOptions, _tpe),
        SamplerKind("random", "uniform draws", NoOptions, _random, history_limit=0),
        SamplerKind(GRID, "every point of a grid once, in random order; then the search ends", GridOptions, None),
        SamplerKind("qmc", "a low-discrepancy sequence: random, but evenly spread", QmcOptions, _qmc, history_limit=0),
        # Fitting is cubic in the history.
        SamplerKind("gp", "a Gaussian process, for few, expensive trials", GpOptions, _gp, history_limit=200),
        SamplerKind(
            "mfgp", "a Gaussian process that learns from trials of every length", MfgpOptions, _mfgp, False, 200
        ),
        SamplerKind("cmaes", "evolution strategy, for many trials over real numbers", CmaesOptions, _cmaes, False),
        SamplerKind("nsga2", "genetic search, for several objectives", Nsga2Options, _nsga2),
    )
}
