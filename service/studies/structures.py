"""Resolve a budget on a model's layers: the structures that it admits, and the predictors' rankings of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cdka

from ..domain.plan import LayerShape, MethodSize, Plan, Target
from ..domain.records import StoredPrediction
from ..domain.search_space import Pair, SearchSpace
from ..domain.structure import SIZES, by_group, of_groups, uniform
from ..domain.study_spec import BudgetSpec
from ..errors import Fault
from ..search.grouped import Grouped
from .base_models import MetaModel


def resolve(
    model: MetaModel,
    shapes: Sequence[cdka.ModuleShape],
    budget: BudgetSpec,
    space: SearchSpace | None,
    groups: Mapping[str, str] | None = None,
) -> tuple[Plan | None, list[Fault]]:
    """The plan of a budget and a search space on adapted layers, or the faults that prevent it.

    ``groups`` names the group of each layer, where CDKA has a structure for each group.
    """
    try:
        limit = _max_parameters(shapes, model.parameters, budget)
        cdka.feasible(shapes, limit)
    except cdka.CdkaError as error:
        return None, [Fault("#/budget", str(error))]
    pairs: list[Pair] = []
    if space is not None:
        sizes, least, bounds = [(1, 1)], 0.0, None
        if "cdka" in space.methods():
            faults = _divisibility_faults(shapes, space)
            if faults:
                return None, faults
            sizes = [(r1, r2) for r1 in space.r1_sizes() for r2 in space.r2_sizes()]
            least, bounds = budget.min_fill, space.r_bounds()
        found = (_pair(shapes, limit, least, r1, r2, bounds) for r1, r2 in sizes)
        pairs = [pair for pair in found if pair is not None]
        if not pairs and not groups:
            return None, [_empty_space(shapes, limit, budget.min_fill, space)]
    sizes_of, faults = _method_sizes(shapes, limit, space)
    if faults:
        return None, faults
    plan = Plan(
        methods=sizes_of,
        shapes=tuple(
            LayerShape(name=s.name, d_in=s.d_in, d_out=s.d_out, group=(groups or {}).get(s.name)) for s in shapes
        ),
        max_parameters=limit,
        min_fill=budget.min_fill,
        base_parameters=model.parameters,
        structures=tuple(sorted(pairs, key=lambda pair: pair.order)),
    )
    if groups and space is not None and "cdka" in space.methods():
        plan = plan.model_copy(update={"groups": _group_pairs(plan, space)})
        if not all(plan.groups.values()) or Grouped(plan, space.r_bounds()).is_empty():
            return None, [_no_combination(plan, space)]
    return plan, []


def resolve_choices(
    model: MetaModel,
    choices: Mapping[str, Sequence[cdka.ModuleShape]],
    budget: BudgetSpec,
    space: SearchSpace,
) -> tuple[Plan | None, list[Fault]]:
    """The plan of a search over target modules: each choice at one budget.

    The budget is counted on the choice with the most parameters; of equal ones, on the first by name.
    """
    reference = min(choices, key=lambda name: (-cdka.count_lora_parameters(choices[name], 1), name))
    plan, faults = resolve(model, choices[reference], budget, space)
    if plan is None:
        return None, faults
    same = BudgetSpec(max_parameters=plan.max_parameters, min_fill=budget.min_fill)
    targets = {}
    for name, shapes in choices.items():
        if name == reference:
            continue
        found, own = resolve(model, shapes, same, space)
        if found is None:
            faults += [Fault(f"#/search_space/target_modules/choices/{name}", fault.detail) for fault in own]
        else:
            targets[name] = Target(shapes=found.shapes, structures=found.structures, methods=found.methods)
    if faults:
        return None, faults
    return plan.model_copy(update={"targets": targets, "reference": reference}), []


def _group_pairs(plan: Plan, space: SearchSpace) -> dict[str, tuple[Pair, ...]]:
    """The pairs of each group of which one component fits, with the least of all other groups."""
    shapes = shapes_by_group(plan)
    low = (space.r_bounds() or (1, 1))[0]
    sizes = [(r1, r2) for r1 in space.r1_sizes() for r2 in space.r2_sizes()]
    units = {g: {pair: cdka.count_parameters(mine, *pair, 1) for pair in sizes} for g, mine in shapes.items()}
    found = {}
    for group, mine in units.items():
        others = sum(low * min(other.values()) for name, other in units.items() if name != group)
        left = plan.max_parameters - others
        pairs = [
            Pair(r1=r1, r2=r2, r_low=low, r_high=left // unit, unit_parameters=unit)
            for (r1, r2), unit in mine.items()
            if low * unit <= left
        ]
        found[group] = tuple(sorted(pairs, key=lambda pair: pair.order))
    return found


def _no_combination(plan: Plan, space: SearchSpace) -> Fault:
    shapes = shapes_by_group(plan)
    sizes = [(r1, r2) for r1 in space.r1_sizes() for r2 in space.r2_sizes()]
    least = sum(min(cdka.count_parameters(mine, *pair, 1) for pair in sizes) for mine in shapes.values())
    return Fault(
        "#/search_space",
        f"no structures of the groups {', '.join(shapes)} use at least {plan.min_fill:.0%} of the budget of "
        f"{plan.max_parameters} parameters in this space, where one component for each costs at least {least}: "
        "widen r1, r2 or r, or lower budget.min_fill",
    )


def shapes_by_group(plan: Plan) -> dict[str, list[cdka.ModuleShape]]:
    """The adapted layers of each group."""
    names = dict.fromkeys(s.group for s in plan.shapes if s.group is not None)
    return {name: [cdka.ModuleShape(s.name, s.d_in, s.d_out) for s in plan.shapes if s.group == name] for name in names}


def count(plan: Plan, method: str, params: Mapping[str, Any]) -> int:
    """The adapter parameters of a configuration.

    Raises:
        cdka.IndivisibleError: its sizes do not divide a layer.
    """
    if groups := by_group(params):
        shapes = shapes_by_group(plan)
        return sum(cdka.count_parameters(shapes[name], *sizes) for name, sizes in groups.items())
    return cdka.count_method_parameters(method, module_shapes(plan.at(params)), params)


def grouped_alike(plan: Plan, params: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of CDKA in the form that the study's trials have: with groups, each has the given structure."""
    structure = uniform(params)
    if not plan.groups or structure is None or by_group(params):
        return dict(params)
    others = {name: value for name, value in params.items() if name not in SIZES}
    return {**of_groups(dict.fromkeys(plan.groups, structure)), **others}


def _method_sizes(
    shapes: Sequence[cdka.ModuleShape], limit: int, space: SearchSpace | None
) -> tuple[dict[str, MethodSize], list[Fault]]:
    """The sizes of the space's methods besides CDKA, and the faults of those that the budget does not admit."""
    found, faults = {}, []
    for k, method in enumerate([] if space is None or space.method is None else space.methods()):
        if method == "cdka":
            continue
        try:
            size = cdka.size_in_budget(method, shapes, limit)
        except cdka.BudgetError as error:
            one = isinstance(space.method, str) if space is not None else True
            faults.append(Fault("#/search_space/method" + ("" if one else f"/choices/{k}"), str(error)))
        else:
            found[method] = MethodSize(sizes=size.sizes, parameters=size.parameters)
    return found, faults


def _max_parameters(shapes: Sequence[cdka.ModuleShape], base: int, budget: BudgetSpec) -> int:
    if budget.lora_rank is not None:
        return cdka.count_lora_parameters(shapes, budget.lora_rank)
    if budget.configuration is not None:
        sizes = budget.configuration
        return cdka.count_parameters(shapes, sizes.r1, sizes.r2, sizes.r)
    if budget.fraction is not None:
        return math.floor(budget.fraction * base)
    assert budget.max_parameters is not None
    return budget.max_parameters


def _divisibility_faults(shapes: Sequence[cdka.ModuleShape], space: SearchSpace) -> list[Fault]:
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


def _pair(
    shapes: Sequence[cdka.ModuleShape], limit: int, min_fill: float, r1: int, r2: int, bounds: tuple[int, int] | None
) -> Pair | None:
    """The pair with the r that fill the budget enough and lie within ``bounds`` (``None``: the largest r)."""
    unit = cdka.count_parameters(shapes, r1, r2, 1)
    high = limit // unit
    low = max(1, math.ceil(min_fill * limit / unit - 1e-9))
    if bounds is None:
        low = max(low, high)
    else:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    if low > high:
        return None
    return Pair(r1=r1, r2=r2, r_low=low, r_high=high, unit_parameters=unit)


def _empty_space(shapes: Sequence[cdka.ModuleShape], limit: int, min_fill: float, space: SearchSpace) -> Fault:
    pairs = [(a, b) for a in space.r1_sizes() for b in space.r2_sizes()]
    units = {pair: cdka.count_parameters(shapes, *pair, 1) for pair in pairs}
    closest = max(pairs, key=lambda p: limit // units[p] * units[p])
    share = limit // units[closest] * units[closest] / limit
    return Fault(
        "#/search_space",
        f"no (r1, r2, r) uses at least {min_fill:.0%} of the budget of {limit} parameters in this space; "
        f"the closest pair, r1={closest[0]} r2={closest[1]}, can use {share:.0%}: "
        "widen r1, r2 or r, or lower budget.min_fill",
    )


@dataclass(frozen=True, slots=True)
class Admission:
    """A pair (r1, r2) of a search space, and why it is not searched, if so; ``r`` is the largest that fits."""

    r1: int
    r2: int
    r: int | None
    share: float
    reason: str | None


def admissions(plan: Plan, space: SearchSpace) -> list[Admission]:
    """Every pair of the space, by r1 and then r2; where target modules are searched, as the first that admits it."""
    shapes = module_shapes(plan)
    found = []
    for r1 in space.r1_sizes():
        for r2 in space.r2_sizes():
            try:
                unit = cdka.count_parameters(shapes, r1, r2, 1)
            except cdka.CdkaError as error:
                found.append(Admission(r1, r2, None, 0.0, str(error)))
                continue
            r = plan.max_parameters // unit
            share = r * unit / plan.max_parameters
            pair = next((p for p in (one.pair(r1, r2) for one in plan.variants) if p is not None), None)
            if pair is not None:
                found.append(Admission(r1, r2, pair.r_high, pair.r_high * unit / plan.max_parameters, None))
            elif not r:
                message = f"r = 1 costs {unit:,} parameters; the budget is {plan.max_parameters:,}"
                found.append(Admission(r1, r2, None, unit / plan.max_parameters, message))
            else:
                message = f"r = {r} uses {share:.0%} of the budget; min_fill is {plan.min_fill:.0%}"
                asked = space.r_bounds()
                if share >= plan.min_fill and asked is not None:
                    message = f"no r from {asked[0]} to {asked[1]} uses enough of the budget; r = {r} would"
                found.append(Admission(r1, r2, r, share, message))
    return found


def module_shapes(plan: Plan) -> list[cdka.ModuleShape]:
    """The adapted layers of a plan."""
    return [cdka.ModuleShape(s.name, s.d_in, s.d_out) for s in plan.shapes]


def rank(plan: Plan, space: SearchSpace | None, predictors: Sequence[str]) -> dict[str, list[StoredPrediction]]:
    """The rankings of the predictors that need only the budget."""
    shapes = module_shapes(plan)
    candidates = candidates_for(plan, space)
    return {
        name: stored(cdka.predict(shapes, plan.max_parameters, name, candidates=candidates))
        for name in predictors
        if name in cdka.FROM_BUDGET
    }


def group_budgets(plan: Plan) -> dict[str, int]:
    """The share of the budget of each group of layers if LoRA of one rank adapted all layers, rounded down."""
    units = {name: cdka.count_lora_parameters(mine, 1) for name, mine in shapes_by_group(plan).items()}
    return {name: plan.max_parameters * unit // sum(units.values()) for name, unit in units.items()}


def group_candidates(plan: Plan, space: SearchSpace | None) -> dict[str, list[cdka.Configuration]]:
    """The structures of each group of layers that fit its share of the budget; none where nothing fits."""
    shapes = shapes_by_group(plan)
    if not shapes:
        return {}
    found = {}
    for name, limit in group_budgets(plan).items():
        try:
            found[name] = _candidates(shapes[name], limit, space)
        except cdka.BudgetError:
            found[name] = []
    return found


def rank_groups(plan: Plan, space: SearchSpace | None, predictor: str) -> dict[str, list[StoredPrediction]]:
    """A ranking of each group's structures, within its share of the budget, by a predictor that needs only the budget.

    Empty where all layers have one structure.
    """
    shapes = shapes_by_group(plan)
    if not shapes:
        return {}
    limits = group_budgets(plan)
    return {
        name: stored(cdka.predict(shapes[name], limits[name], predictor, candidates=candidates)) if candidates else []
        for name, candidates in group_candidates(plan, space).items()
    }


def stored(ranking: Sequence[cdka.Prediction]) -> list[StoredPrediction]:
    """A ranking as it is stored."""
    return [
        StoredPrediction(*p.configuration.structure, p.configuration.parameters, p.score, p.reason) for p in ranking
    ]


def at_targets(
    rankings: Mapping[str, Sequence[StoredPrediction]], whole: Plan, plan: Plan, space: SearchSpace
) -> dict[str, list[StoredPrediction]]:
    """The rankings for another choice of target modules than the one that they were made for.

    Those that need only the budget are made again. A measured one keeps its order of pairs, with the r that fills the
    budget there; a pair that does not fit is left out.
    """
    again = rank(plan, space, list(rankings))
    shapes, found = module_shapes(plan), {}
    for name, ranking in rankings.items():
        if name in again:
            found[name] = again[name]
            continue
        pairs: dict[tuple[int, int], StoredPrediction] = {}
        for entry in ranking:
            pairs.setdefault((entry.r1, entry.r2), entry)
        kept = []
        for (r1, r2), entry in pairs.items():
            try:
                r = cdka.largest_r(shapes, whole.max_parameters, r1, r2)
            except cdka.IndivisibleError:
                continue
            if r:
                kept.append(replace(entry, r=r, parameters=cdka.count_parameters(shapes, r1, r2, r)))
        if kept:
            found[name] = kept
    return found


def prior_of(plan: Plan, rankings: Mapping[str, Sequence[StoredPrediction]]) -> tuple[float, ...]:
    """How the predictors rate each pair of a plan: the mean of their places, 1 for the first, in the plan's order.

    Empty without a ranking, and where target modules are searched or groups have structures of their own.
    """
    if plan.targets or plan.groups or not rankings or not plan.structures:
        return ()
    pairs = [(p.r1, p.r2) for p in plan.structures]
    ratings = []
    for ranking in rankings.values():
        order = [pair for pair in dict.fromkeys((e.r1, e.r2) for e in ranking) if pair in pairs]
        order += [pair for pair in pairs if pair not in order]
        ratings.append([1 - order.index(pair) / len(pairs) for pair in pairs])
    return tuple(sum(mine) / len(ratings) for mine in zip(*ratings, strict=True))


def candidates_for(plan: Plan, space: SearchSpace | None) -> list[cdka.Configuration]:
    """The structures that predictors rank: powers of two, and the sizes that the study names, within the budget."""
    return _candidates(module_shapes(plan), plan.max_parameters, space)


def _candidates(shapes: Sequence[cdka.ModuleShape], limit: int, space: SearchSpace | None) -> list[cdka.Configuration]:
    candidates = set(cdka.feasible(shapes, limit))
    if space is not None and "cdka" in space.methods():
        candidates.update(cdka.feasible(shapes, limit, r1=space.r1_sizes(), r2=space.r2_sizes()))
    return sorted(candidates)
