"""Validate a study in full and resolve it on its model, before anything is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from transformers import AutoConfig

import cdka

from ..domain.faults import schema_faults
from ..domain.metrics import COMPUTED, metrics_of
from ..domain.plan import LayerShape, Plan
from ..domain.records import StoredPrediction
from ..domain.search_space import FloatRange, SearchSpace, Structure
from ..domain.study_spec import (
    AdapterSpec,
    BudgetSpec,
    CompareSpec,
    ModelSpec,
    Objective,
    StudySpec,
    TaskSpec,
    TrainingSpec,
)
from ..domain.task_spec import TaskKind
from ..errors import Fault, InvalidRequest, InvalidStudy
from ..paths import gguf_file, locate
from .admission import admit
from .datasets import check_dataset
from .strategies import grid_faults, search_faults


@dataclass(frozen=True, slots=True)
class Planned:
    """A valid study: its parsed form, its plan and the predictors' rankings."""

    spec: StudySpec
    plan: Plan
    predictions: dict[str, list[StoredPrediction]]


def plan_study(body: Any, roots: Sequence[Path]) -> Planned:
    """Validate a posted study and resolve it on its model.

    Raises:
        InvalidStudy: with every fault that can be found at once, each at its place.
    """
    faults: list[Fault] = []
    spec: StudySpec | None = None
    try:
        spec = StudySpec.model_validate(body)
    except ValidationError as error:
        faults += schema_faults(error)
    sections = _sections(body) if spec is None else {name: getattr(spec, name) for name in StudySpec.model_fields}

    task: TaskSpec | None = sections.get("task")
    training: TrainingSpec | None = sections.get("training")
    if task is not None and training is not None:
        faults += _training_faults(task, training)
    if task is not None:
        faults += _task_faults(task, sections.get("objectives") or [], roots)
    if (search := sections.get("search")) is not None:
        objectives = sections.get("objectives") or []
        faults += search_faults(search, len(objectives), metrics_of(task) if task is not None else None)
    if (compare := sections.get("compare")) is not None and (space := sections.get("search_space")) is not None:
        faults += _compare_faults(compare, space)
    plan = None
    model, adapter, budget = (sections.get(name) for name in ("model", "adapter", "budget"))
    config = None
    if model is not None and adapter is not None:
        kind = task.architecture if task is not None else None
        config, shapes, base, found = _read_model(model, adapter, kind, roots, sections.get("training"))
        faults += found
        if shapes and budget is not None:
            plan, found = _resolve(shapes, base, budget, sections.get("search_space"))
            faults += found
    if spec is not None and plan is not None and not faults:
        faults += grid_faults(spec, plan)
        spec, plan, found = admit(spec, plan, config)
        faults += found
    if faults or spec is None or plan is None:
        unique = list(dict.fromkeys(faults))
        raise InvalidStudy(f"the study has {len(unique)} fault{'s' * (len(unique) != 1)}; nothing was stored", unique)
    return Planned(spec, plan, rank(plan, spec.search_space, spec.compare.predictors))


def plan_prediction(
    model: ModelSpec, kind: str, adapter: AdapterSpec, budget: BudgetSpec, roots: Sequence[Path]
) -> tuple[Plan, dict[str, list[StoredPrediction]]]:
    """Predictions for a model, task and budget, without a study.

    Raises:
        InvalidRequest: with every fault, each at its place.
    """
    _, shapes, base, faults = _read_model(model, adapter, kind, roots)
    plan = None
    if shapes:
        plan, found = _resolve(shapes, base, budget, None)
        faults += found
    if faults or plan is None:
        raise InvalidRequest("no prediction can be made", faults)
    return plan, rank(plan, None, list(cdka.FROM_BUDGET))


def _sections(body: Any) -> dict[str, Any]:
    """The sections of a faulty study that parse by themselves, so that their further faults are found too."""
    sections: dict[str, Any] = {}
    if not isinstance(body, dict):
        return sections
    for name, field in StudySpec.model_fields.items():
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            continue
        try:
            default = None if field.is_required() else field.get_default()
            sections[name] = kind.model_validate(body[name]) if name in body else default
        except ValidationError:
            continue
    return sections


def _task_faults(task: TaskSpec, objectives: Sequence[Objective], roots: Sequence[Path]) -> list[Fault]:
    faults = check_dataset(task, roots, "#/task")
    named = metrics_of(task)
    if task.metric not in named:
        there = ", ".join(named)
        faults.append(Fault("#/task/metric", f"unknown metric {task.metric!r} for {task.kind}; there are: {there}"))
    known = {**named, **COMPUTED}
    for k, objective in enumerate(objectives):
        place, metric = f"#/objectives/{k}/metric", objective.metric
        if metric not in known:
            faults.append(Fault(place, f"unknown metric {metric!r} for {task.kind}; there are: {', '.join(known)}"))
        if metric in [o.metric for o in objectives[:k]]:
            faults.append(Fault(place, f"{metric!r} is an objective already"))
    if objectives and objectives[0].metric in COMPUTED:
        message = f"the first objective is what the confirmation judges by: one of {', '.join(named)}"
        faults.append(Fault("#/objectives/0/metric", message))
    for k, objective in enumerate(objectives):
        natural = known.get(objective.metric)
        if natural is not None and objective.direction is not natural:
            faults.append(Fault(f"#/objectives/{k}/direction", f"{objective.metric} is to {natural}"))
    return faults


def _training_faults(task: TaskSpec, training: TrainingSpec) -> list[Fault]:
    if training.batching == "length" and task.kind is TaskKind.IMAGE_CLASSIFICATION:
        return [Fault("#/training/batching", "images are all of one size; 'length' is for texts")]
    if training.packing and task.kind is not TaskKind.CAUSAL_LM and task.kind is not TaskKind.CUSTOM:
        return [Fault("#/training/packing", f"packing is for causal_lm; {task.kind} pads its batches")]
    return []


def _compare_faults(compare: CompareSpec, space: SearchSpace) -> list[Fault]:
    if compare.seeds and compare.learning_rate == "tuned" and not isinstance(space.learning_rate, FloatRange):
        message = "'tuned' needs search_space.learning_rate to be a range; or say 'shared'"
        return [Fault("#/compare/learning_rate", message)]
    return []


def _read_model(
    model: ModelSpec,
    adapter: AdapterSpec,
    kind: str | None,
    roots: Sequence[Path],
    training: TrainingSpec | None = None,
) -> tuple[Any, list[cdka.ModuleShape], int, list[Fault]]:
    """The model's config, the shapes of the adapted layers and the base model's parameters."""
    try:
        where = locate(model.path, roots)
        file = gguf_file(where)
        form = {} if file is None else {"gguf_file": file}
        config = AutoConfig.from_pretrained(where, revision=model.revision, trust_remote_code=False, **form)
        built = cdka.meta_model(config, kind)
    except InvalidRequest as error:
        return None, [], 0, [Fault("#/model/path", error.detail)]
    except cdka.CdkaError as error:
        return None, [], 0, [Fault("#/model/path", str(error))]
    except Exception as error:  # transformers may raise anything for a config of a user
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return None, [], 0, [Fault("#/model/path", f"no model can be read from {model.path!r}: {reason}")]
    base = sum(p.numel() for p in built.parameters())
    faults = []
    positions = getattr(config, "max_position_embeddings", None)
    if training is not None and isinstance(positions, int) and training.max_length > positions:
        message = f"{training.max_length} tokens are more than the {positions} positions of {model.path!r}"
        faults.append(Fault("#/training/max_length", message))
    targets = adapter.target_modules
    try:
        return config, cdka.module_shapes(built, targets, kind), base, faults
    except cdka.CdkaError as error:
        return config, [], base, [*faults, Fault("#/adapter/target_modules", str(error))]


def _resolve(
    shapes: list[cdka.ModuleShape], base: int, budget: BudgetSpec, space: SearchSpace | None
) -> tuple[Plan | None, list[Fault]]:
    """The budget in parameters and the structures that it admits."""
    try:
        limit = _max_parameters(shapes, base, budget)
        cdka.feasible(shapes, limit)
    except cdka.CdkaError as error:
        return None, [Fault("#/budget", str(error))]
    structures: list[Structure] = []
    if space is not None:
        faults = _divisibility_faults(shapes, space)
        if faults:
            return None, faults
        structures = [
            s
            for r1 in space.r1_sizes()
            for r2 in space.r2_sizes()
            if (s := _structure(shapes, limit, budget.min_fill, r1, r2, space.r_bounds())) is not None
        ]
        if not structures:
            return None, [_empty_space(shapes, limit, budget.min_fill, space)]
    plan = Plan(
        shapes=tuple(LayerShape(name=s.name, d_in=s.d_in, d_out=s.d_out) for s in shapes),
        max_parameters=limit,
        min_fill=budget.min_fill,
        base_parameters=base,
        structures=tuple(sorted(structures, key=lambda s: s.order)),
    )
    return plan, []


def _max_parameters(shapes: list[cdka.ModuleShape], base: int, budget: BudgetSpec) -> int:
    if budget.lora_rank is not None:
        return cdka.count_lora_parameters(shapes, budget.lora_rank)
    if budget.configuration is not None:
        sizes = budget.configuration
        return cdka.count_parameters(shapes, sizes.r1, sizes.r2, sizes.r)
    if budget.fraction is not None:
        return math.floor(budget.fraction * base)
    assert budget.max_parameters is not None
    return budget.max_parameters


def _divisibility_faults(shapes: list[cdka.ModuleShape], space: SearchSpace) -> list[Fault]:
    faults = []
    for symbol, given in (("r1", space.r1), ("r2", space.r2)):
        sizes = [(f"#/search_space/{symbol}", given)] if isinstance(given, int) else []
        if not isinstance(given, int):
            sizes = [(f"#/search_space/{symbol}/choices/{k}", size) for k, size in enumerate(given.choices)]
        for place, size in sizes:
            try:
                cdka.require_divisible(shapes, size if symbol == "r1" else 1, size if symbol == "r2" else 1)
            except cdka.IndivisibleError as error:
                faults.append(Fault(place, str(error)))
    return faults


def _structure(
    shapes: list[cdka.ModuleShape], limit: int, min_fill: float, r1: int, r2: int, bounds: tuple[int, int] | None
) -> Structure | None:
    unit = cdka.count_parameters(shapes, r1, r2, 1)
    high = limit // unit
    low = max(1, math.ceil(min_fill * limit / unit - 1e-9))
    if bounds is None:
        low = max(low, high)
    else:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    if low > high:
        return None
    return Structure(r1=r1, r2=r2, r_low=low, r_high=high, unit_parameters=unit)


def _empty_space(shapes: list[cdka.ModuleShape], limit: int, min_fill: float, space: SearchSpace) -> Fault:
    pairs = [(a, b) for a in space.r1_sizes() for b in space.r2_sizes()]
    units = {pair: cdka.count_parameters(shapes, *pair, 1) for pair in pairs}
    closest = max(pairs, key=lambda p: limit // units[p] * units[p])
    share = limit // units[closest] * units[closest] / limit
    return Fault(
        "#/search_space",
        f"no (r1, r2, r) uses at least {min_fill:.0%} of the budget of {limit} parameters within it; "
        f"the closest pair, r1={closest[0]} r2={closest[1]}, can use {share:.0%}: "
        "widen r1, r2 or r, or lower budget.min_fill",
    )


def rank(plan: Plan, space: SearchSpace | None, predictors: Sequence[str]) -> dict[str, list[StoredPrediction]]:
    """The rankings of the predictors that need only the budget."""
    shapes = [cdka.ModuleShape(s.name, s.d_in, s.d_out) for s in plan.shapes]
    candidates = candidates_for(plan, space)
    return {
        name: [
            StoredPrediction(*p.configuration.structure, p.configuration.parameters, p.score, p.reason)
            for p in cdka.predict(shapes, plan.max_parameters, name, candidates=candidates)
        ]
        for name in predictors
        if name in cdka.FROM_BUDGET
    }


def candidates_for(plan: Plan, space: SearchSpace | None) -> list[cdka.Configuration]:
    """The structures that predictors rank: powers of two, and the sizes that the study names, within the budget."""
    shapes = [cdka.ModuleShape(s.name, s.d_in, s.d_out) for s in plan.shapes]
    candidates = set(cdka.feasible(shapes, plan.max_parameters))
    if space is not None:
        named = cdka.feasible(shapes, plan.max_parameters, r1=space.r1_sizes(), r2=space.r2_sizes())
        candidates.update(named)
    return sorted(candidates)
