"""The candidates of the confirmation: the best found, each predictor's choice and each baseline, at one budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import cdka

from ..domain import seeds
from ..domain.plan import Plan
from ..domain.ranges import FloatRange
from ..domain.records import Candidate, NewTrial, Observation, StoredPrediction, Study, Trial
from ..domain.states import TrialPhase
from ..domain.structure import told
from ..domain.study_spec import Direction
from ..search.coordinates import METHOD, has, is_own, method_of
from .defaults import PUBLISHED_ADAPTER, PUBLISHED_ALPHA, typical
from .structures import at_targets, count, grouped_alike, module_shapes

Judged = TypeVar("Judged", Trial, Observation)


def best_trial(trials: Sequence[Judged], metric: str, direction: Direction) -> Judged | None:
    """The finished trial with the best value; of equal ones, the earliest."""
    finished = [t for t in trials if t.metrics.get(metric) is not None and t.state == "completed"]
    if not finished:
        return None
    sign = -1.0 if direction is Direction.MAXIMIZE else 1.0
    return min(finished, key=lambda t: (sign * t.metrics[metric], t.number))


def candidates(
    study: Study,
    best: Trial,
    predictions: Mapping[str, Sequence[StoredPrediction]],
    others: Sequence[Observation] = (),
    further: Sequence[Trial] = (),
) -> list[Candidate]:
    """The candidates in display order: the best found, ``further`` ones, the best of other methods, then the rest.

    Predictions and baselines share the winner's searched training and target modules, and its learning rate until that
    is tuned; those of one method share the scale of the best of it. So they differ in structure. The guideline with its
    published alpha is one more candidate.
    """
    plan = study.plan.at(best.params)
    shapes = module_shapes(plan)
    space = study.spec.search_space
    if plan is not study.plan:
        predictions = at_targets(predictions, study.plan, plan, space)
    what = "" if space.method is None else f", {_sizes_named(best.method, best.params)}"
    title = f"best found (trial {best.number}{what})"
    named: list[tuple[str, str, str, dict[str, Any], int]] = [
        ("best", title, best.method, _without_method(best.params), best.parameters)
    ]
    for rank, trial in enumerate(further, start=2):
        what = "" if space.method is None else f", {_sizes_named(trial.method, trial.params)}"
        title = f"found {_ordinal(rank)} (trial {trial.number}{what})"
        named.append((f"found_{rank}", title, trial.method, _without_method(trial.params), trial.parameters))
    for seen in others:
        method = method_of(seen.params)
        title = f"best {_TITLES[method]} found (trial {seen.number}, {_sizes_named(method, seen.params)})"
        cost = count(study.plan, method, seen.params)
        named.append((f"best_{method}", title, method, _without_method(seen.params), cost))
    # Scales mean something else in each method: each takes those of its own best trial, if it has one.
    own_best = {method_of(seen.params): seen.params for seen in others} | {best.method: best.params}

    def shared(method: str) -> dict[str, Any]:
        mine = own_best.get(method, best.params)
        sources = {name: mine if is_own(name) else best.params for name in space.parameters()}
        return {name: source.get(name, typical(space, name)) for name, source in sources.items()}

    for predictor, ranking in predictions.items():
        top = ranking[0]
        params = grouped_alike(plan, {"r1": top.r1, "r2": top.r2, "r": top.r, **shared("cdka")})
        named.append((predictor, f"{predictor}'s choice", "cdka", params, top.parameters))
        if predictor == "guideline":
            fixed = study.spec.adapter.model_dump()
            own = {n: v for n, v in PUBLISHED_ADAPTER.items() if n in params or fixed[n] != v}
            published = {**params, **own, "alpha": PUBLISHED_ALPHA}
            title = f"guideline as published (alpha {PUBLISHED_ALPHA:g})"
            named.append(("guideline_published", title, "cdka", published, top.parameters))
    named += [_baseline(baseline, shapes, plan, shared(baseline)) for baseline in study.spec.compare.baselines]
    result: list[Candidate] = []
    for name, title, method, params, parameters in named:
        twin = next((c for c in result if (c.method, c.params) == (method, params)), None)
        result.append(Candidate(name, title, method, params, parameters, twin.runs_as if twin else name))
    return result


def best_of_other_methods(study: Study, best: Trial, searched: Sequence[Observation]) -> list[Observation]:
    """The best search trial of every searched method but the winner's, in the order of the space."""
    objective = study.spec.objective
    found = []
    for method in study.spec.search_space.methods():
        if method != best.method:
            mine = [t for t in searched if method_of(t.params) == method]
            found += [t for t in [best_trial(mine, objective.metric, objective.direction)] if t is not None]
    return found


def _ordinal(rank: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(rank, f"{rank}th")


def _without_method(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name != METHOD}


_TITLES = {
    "cdka": "CDKA",
    "krona": "KronA",
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "dora": "DoRA",
    "miss": "MiSS",
    "lokr": "LoKr",
    "full": "full fine-tuning",
}
# Where adapters learn best, full fine-tuning learns best at about a tenth of the rate (Schulman et al., "LoRA Without
# Regret", Thinking Machines Lab 2025).
FULL_RATE = 0.1


def _sizes_named(method: str, params: Mapping[str, Any]) -> str:
    """A method with its sizes, such as ``LoRA rank 8``."""
    if method == "cdka":
        return f"{_TITLES[method]} ({told(params)})"
    if method == "krona":
        return f"{_TITLES[method]} ({params['r1']}, {params['r2']})"
    if method == "full":
        return "full fine-tuning of the adapted layers"
    factor = f", factor {params['factor']}" if "factor" in params else ""
    return f"{_TITLES[method]} rank {params['r']}{factor}"


def _baseline(
    name: str, shapes: Sequence[cdka.ModuleShape], plan: Plan, shared: Mapping[str, Any]
) -> tuple[str, str, str, dict[str, Any], int]:
    """A baseline at the budget; where not even its smallest adapter fits, that one."""
    try:
        size = cdka.size_in_budget(name, shapes, plan.max_parameters)
    except cdka.BudgetError:
        sizes = {"r": 1, "factor": 1} if name == "lokr" else {"r": 1}
        size = cdka.MethodSize(sizes, cdka.count_method_parameters(name, shapes, sizes))
    params = {**{k: v for k, v in shared.items() if has(name, k)}, **size.sizes}
    params["learning_rate"] *= _rate_of(name)
    return name, _sizes_named(name, params), name, params, size.parameters


def _rate_of(method: str) -> float:
    """A method's learning rates, as a share of those of adapters."""
    return FULL_RATE if method == "full" else 1.0


def tuning_trials(study: Study, chosen: Sequence[Candidate], first_number: int) -> list[NewTrial]:
    """The learning-rate search of every candidate: the winner's rate and an even grid, the same for all adapters."""
    rates = study.spec.search_space.learning_rate
    assert isinstance(rates, FloatRange)
    winner = chosen[0].params["learning_rate"] / _rate_of(chosen[0].method)
    values = list(dict.fromkeys([winner, *rates.spread(study.spec.compare.tuning_trials - 1)]))
    return _numbered(
        [
            (c, {**c.params, "learning_rate": value * _rate_of(c.method)}, study.spec.search.seed)
            for c in chosen
            if c.runs_as == c.name
            for value in values
        ],
        TrialPhase.TUNING,
        first_number,
    )


def confirmation_trials(
    study: Study,
    chosen: Sequence[Candidate],
    tuned: Mapping[str, dict[str, Any]],
    first_number: int,
    before: int = 0,
    count: int | None = None,
) -> list[NewTrial]:
    """Every distinct candidate with every seed. All candidates share the seeds; the search used none of them.

    From the seed after the first ``before`` up to ``count`` in all (default: those with which a confirmation begins).
    """
    fresh = seeds.confirmation(study.spec.search.seed, study.spec.compare.first_seeds if count is None else count)
    fresh = fresh[before:]
    return _numbered(
        [(c, tuned.get(c.name, c.params), seed) for seed in fresh for c in chosen if c.runs_as == c.name],
        TrialPhase.CONFIRMATION,
        first_number,
    )


def _numbered(
    runs: Sequence[tuple[Candidate, dict[str, Any], int]], phase: TrialPhase, first_number: int
) -> list[NewTrial]:
    return [
        NewTrial(
            number=first_number + k,
            phase=phase,
            method=c.method,
            params=params,
            parameters=c.parameters,
            seed=seed,
            candidate=c.name,
        )
        for k, (c, params, seed) in enumerate(runs)
    ]
