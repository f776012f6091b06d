"""The candidates of the confirmation: the best found, each predictor's choice and each baseline, at one budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import cdka

from ..domain.plan import Plan
from ..domain.records import Candidate, NewTrial, Observation, StoredPrediction, Study, Trial
from ..domain.search_space import FloatRange
from ..domain.states import TrialPhase
from ..domain.study_spec import Direction
from .structures import module_shapes

# The alpha of (2, 8, 4) in the authors' model card and in each of their reference configurations that have r1 and r2
# (github.com/rainstonee/CDKA). A port by others says 16.
PUBLISHED_ALPHA = 64.0
# How its factors start and scale; a study may search others.
PUBLISHED_ADAPTER = {"init_weights": "kaiming", "scaling": "cdka"}

Judged = TypeVar("Judged", Trial, Observation)


def best_trial(trials: Sequence[Judged], metric: str, direction: Direction) -> Judged | None:
    """The finished trial with the best value; of equal ones, the earliest."""
    finished = [t for t in trials if t.metrics.get(metric) is not None and t.state == "completed"]
    if not finished:
        return None
    sign = -1.0 if direction is Direction.MAXIMIZE else 1.0
    return min(finished, key=lambda t: (sign * t.metrics[metric], t.number))


def candidates(study: Study, best: Trial, predictions: Mapping[str, Sequence[StoredPrediction]]) -> list[Candidate]:
    """The candidates in display order.

    All share the winner's alpha, its searched training, and its learning rate until that is tuned, so that they differ
    in structure. The
    guideline with its published alpha is a further candidate.
    """
    shapes = module_shapes(study.plan)
    named: list[tuple[str, str, str, dict[str, Any], int]] = [
        ("best", f"best found (trial {best.number})", "cdka", dict(best.params), best.parameters)
    ]
    for predictor, ranking in predictions.items():
        top = ranking[0]
        params = {**best.params, "r1": top.r1, "r2": top.r2, "r": top.r}
        named.append((predictor, f"{predictor}'s choice", "cdka", params, top.parameters))
        if predictor == "guideline":
            own = {name: value for name, value in PUBLISHED_ADAPTER.items() if name in params}
            published = {**params, **own, "alpha": PUBLISHED_ALPHA}
            title = f"guideline as published (alpha {PUBLISHED_ALPHA:g})"
            named.append(("guideline_published", title, "cdka", published, top.parameters))
    named += [_baseline(baseline, shapes, study.plan, best) for baseline in study.spec.compare.baselines]
    result: list[Candidate] = []
    for name, title, method, params, parameters in named:
        twin = next((c for c in result if (c.method, c.params) == (method, params)), None)
        result.append(Candidate(name, title, method, params, parameters, twin.runs_as if twin else name))
    return result


def _baseline(
    name: str, shapes: Sequence[cdka.ModuleShape], plan: Plan, best: Trial
) -> tuple[str, str, str, dict[str, Any], int]:
    if name == "krona":
        one = cdka.feasible(shapes, plan.max_parameters, r=1)
        pick = max(one, key=lambda c: (c.parameters, -abs(c.r2 - c.r1), -c.r1))
        params = {**best.params, "r1": pick.r1, "r2": pick.r2, "r": 1}
        return name, f"KronA ({pick.r1}, {pick.r2})", "krona", params, pick.parameters
    rank = max(1, cdka.largest_r(shapes, plan.max_parameters, 1, 1))
    params = {k: v for k, v in best.params.items() if k not in ("r1", "r2")} | {"r": rank}
    title = f"{'LoRA' if name == 'lora' else 'rsLoRA'} rank {rank}"
    return name, title, name, params, cdka.count_lora_parameters(shapes, rank)


def tuning_trials(study: Study, chosen: Sequence[Candidate], first_number: int) -> list[NewTrial]:
    """The learning-rate search of every candidate: the winner's rate and an even grid, the same for all."""
    rates = study.spec.search_space.learning_rate
    assert isinstance(rates, FloatRange)
    winner = chosen[0].params["learning_rate"]
    values = [winner, *rates.grid(study.spec.compare.tuning_trials - 1)]
    return _numbered(
        [
            (c, {**c.params, "learning_rate": value}, study.spec.search.seed)
            for c in chosen
            if c.runs_as == c.name
            for value in values
        ],
        TrialPhase.TUNING,
        first_number,
    )


def confirmation_trials(
    study: Study, chosen: Sequence[Candidate], tuned: Mapping[str, dict[str, Any]], first_number: int
) -> list[NewTrial]:
    """Every distinct candidate with every seed. All candidates share the seeds; the search used none of them."""
    seeds = [study.spec.search.seed + 1 + k for k in range(study.spec.compare.seeds)]
    return _numbered(
        [(c, tuned.get(c.name, c.params), seed) for seed in seeds for c in chosen if c.runs_as == c.name],
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
