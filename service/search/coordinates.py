"""Convert between parameters as users see them and the rectangular space in which samplers work.

The pair (r1, r2) is one integer: its index among the admitted pairs, ordered by r2/r1 and then by size. So no proposal
has to be rejected for divisibility or budget. Samplers know distances between numbers but not between categories; in
this order, pairs that are close behave alike, because r2/r1 determines alignment and, on square layers, cost. r is a
position in ``[0, 1]`` within the range that the pair admits. Ranges differ between pairs, but a position means the same
in all of them: the share of the range that the budget leaves open.

Where target modules are searched, the integer stands for the pairs that any choice of them admits; a choice that does
not admit a pair takes the nearest that it does. Where groups of layers have structures of their own, see
:mod:`service.search.grouped`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ..domain.plan import Plan
from ..domain.ranges import FloatRange, IntRange
from ..domain.search_space import Pair
from ..domain.structure import by_group
from ..domain.study_spec import StudySpec
from .grouped import Grouped

# The name of the pair in stored points.
PAIR = "structure"
METHOD = "method"
TARGETS = "target_modules"
CDKA = "cdka"
# Parameters that only some methods have.
_HAVING: Mapping[str, frozenset[str]] = {
    "alpha": frozenset({CDKA, "krona", "lora", "rslora", "dora", "lokr"}),
    "lora_plus_ratio": frozenset({CDKA, "krona", "lora", "rslora", "dora"}),
    "dropout": frozenset({CDKA, "krona", "lora", "rslora", "dora", "miss", "lokr"}),
    "init_weights": frozenset({CDKA, "krona"}),
    "scaling": frozenset({CDKA, "krona"}),
}
R_POSITION = "r_position"
# Parameters that are whole numbers.
WHOLE = {"batch_size", "epochs"}
# Larger grids are not enumerated.
LARGEST_GRID = 100_000


def distributions(spec: StudySpec, plan: Plan) -> dict[str, BaseDistribution]:
    """The sampler's space; parameters with a single value are not in it."""
    space: dict[str, BaseDistribution] = {}
    if len(methods := spec.search_space.methods()) > 1:
        space[METHOD] = CategoricalDistribution(methods)
    if plan.groups:
        space |= grouped(spec, plan).distributions
    else:
        if len(plan.pairs) > 1:
            space[PAIR] = IntDistribution(0, len(plan.pairs) - 1)
        if any(pair.r_low < pair.r_high for choice in plan.variants for pair in choice.structures):
            space[R_POSITION] = FloatDistribution(0.0, 1.0)
    for name, found in spec.search_space.parameters().items():
        if isinstance(found, FloatRange):
            space[name] = FloatDistribution(found.low, found.high, log=found.log, step=found.step)
        elif isinstance(found, IntRange):
            space[name] = IntDistribution(found.low, found.high, log=found.log, step=found.step)
        elif len(values := spec.search_space.values(name) or []) > 1:
            space[name] = CategoricalDistribution(values)
    return space


def method_of(params: Mapping[str, Any]) -> str:
    """The method of a search trial's parameters, which name it where it is searched."""
    return str(params.get(METHOD, CDKA))


def to_params(point: dict[str, Any], spec: StudySpec, plan: Plan) -> dict[str, Any]:
    """The parameters that a point stands for: only those that its method has."""
    space = spec.search_space
    method = point.get(METHOD, space.methods()[0])
    params: dict[str, Any]
    chosen = plan.at({TARGETS: point[TARGETS]} if TARGETS in point else {})
    if method != CDKA:
        params = dict(chosen.methods[method].sizes)
    elif plan.groups:
        params = grouped(spec, plan).params(point)
    else:
        pair = _nearest_pair(chosen, plan.pairs, point.get(PAIR, 0))
        params = {"r1": pair.r1, "r2": pair.r2, "r": _r_at(pair, point.get(R_POSITION, 1.0))}
    if space.method is not None:
        params[METHOD] = method
    for name in space.parameters():
        if has(method, name):
            value = point[name] if name in point else (space.values(name) or [])[0]
            found = getattr(space, name)
            params[name] = _plain(name, found.nearest(value) if isinstance(found, FloatRange) else value)
    return params


def grouped(spec: StudySpec, plan: Plan) -> Grouped:
    """The space of the groups' structures."""
    return Grouped(plan, spec.search_space.r_bounds())


def _nearest_pair(plan: Plan, pairs: Sequence[tuple[int, int]], index: int) -> Pair:
    """The admitted pair of that index among ``pairs``, or the nearest to it, of equally near ones the first."""
    places = {pair: k for k, pair in enumerate(pairs)}
    return min(plan.structures, key=lambda p: abs(places[p.r1, p.r2] - index))


def has(method: str, name: str) -> bool:
    """Whether a method has the parameter of that name."""
    return method in _HAVING.get(name, {method})


def is_own(name: str) -> bool:
    """Whether a parameter means something else in each method that has it."""
    return name in ("alpha", "init_weights", "scaling")


def parameters_of(params: Mapping[str, Any], plan: Plan) -> int:
    """The adapter parameters of a proposed configuration."""
    method, plan = method_of(params), plan.at(params)
    if method != CDKA:
        return plan.methods[method].parameters
    if plan.groups:
        return sum(_unit(plan.groups[g], r1, r2) * r for g, (r1, r2, r) in by_group(params).items())
    pair = plan.pair(params["r1"], params["r2"])
    assert pair is not None, "the policy proposed a pair that the plan does not admit"
    return pair.unit_parameters * int(params["r"])


def _unit(pairs: Sequence[Pair], r1: int, r2: int) -> int:
    return next(p.unit_parameters for p in pairs if (p.r1, p.r2) == (r1, r2))


def _plain(name: str, value: Any) -> Any:
    """A value as it is recorded: whole numbers of steps and of real parameters are told apart by the parameter."""
    return value if isinstance(value, str) or name in WHOLE else float(value)


def to_point(params: Mapping[str, Any], spec: StudySpec, plan: Plan) -> dict[str, Any] | None:
    """The point with these parameters of CDKA; ``None`` if the space does not contain it."""
    if method_of(params) != CDKA or CDKA not in spec.search_space.methods():
        return None
    structure = _structure_point(params, spec, plan)
    if structure is None:
        return None
    point: dict[str, Any] = {}
    for name, distribution in distributions(spec, plan).items():
        if name == METHOD:
            point[name] = CDKA
        elif name in structure:
            point[name] = structure[name]
        else:
            if name not in params or not _holds(distribution, params[name]):
                return None
            point[name] = _plain(name, params[name])
    for name in spec.search_space.parameters():
        if name not in point and params.get(name) != (spec.search_space.values(name) or [])[0]:
            return None
    return point


def _structure_point(params: Mapping[str, Any], spec: StudySpec, plan: Plan) -> dict[str, Any] | None:
    """The coordinates of a configuration's structures; ``None`` if the space does not contain them."""
    if plan.groups:
        return grouped(spec, plan).point(params)
    pair = plan.at(params).pair(params["r1"], params["r2"])
    if pair is None or not pair.r_low <= params["r"] <= pair.r_high:
        return None
    place = (params["r"] - pair.r_low + 0.5) / (pair.r_high - pair.r_low + 1)
    return {PAIR: plan.pairs.index((pair.r1, pair.r2)), R_POSITION: place}


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:  # 0 has no logarithm
        return False


def is_finite(spec: StudySpec, methods: Sequence[str] = ()) -> bool:
    """Whether there are finitely many configurations of ``methods`` (by default of all that are searched).

    That is so if none of their parameters is a range of real numbers.
    """
    space = spec.search_space
    mine = [n for n in space.parameters() if any(has(method, n) for method in methods or space.methods())]
    return all(space.values(name) is not None for name in mine)


def grid_size(spec: StudySpec, plan: Plan, steps: int) -> int:
    """How many points :func:`grid` has."""
    methods = spec.search_space.methods()
    choices = _choices(spec, plan)
    size = (len(methods) - (CDKA in methods)) * len(choices)
    if CDKA in methods and plan.groups:
        size += grouped(spec, plan).size(LARGEST_GRID)
    elif CDKA in methods:
        size += sum(pair.r_high - pair.r_low + 1 for choice in choices.values() for pair in choice.structures)
    for name in spec.search_space.parameters():
        if name == TARGETS:
            continue
        values = spec.search_space.values(name)
        size *= steps if values is None else len(values)
    return size


def grid(spec: StudySpec, plan: Plan, steps: int) -> list[dict[str, Any]]:
    """Every point of the space, with ``steps`` evenly spread values of each range of real numbers.

    Every r of every pair has a point of its own.
    """
    methods = spec.search_space.methods()
    choices = _choices(spec, plan)
    structures = _structure_grid(spec, plan, choices) if CDKA in methods else []
    unset = {PAIR: 0, R_POSITION: 0.5}
    if plan.groups:
        unset |= dict.fromkeys(grouped(spec, plan).distributions, 0)
    others = [{METHOD: m, TARGETS: choice, **unset} for m in methods if m != CDKA for choice in choices]
    axes: list[list[dict[str, Any]]] = [[*structures, *others]]
    for name, found in spec.search_space.parameters().items():
        if name == TARGETS:
            continue
        values = found.grid(steps) if isinstance(found, FloatRange) else spec.search_space.values(name) or []
        axes.append([{name: value} for value in values])
    space = distributions(spec, plan)
    return [
        {name: value for part in parts for name, value in part.items() if name in space}
        for parts in itertools.product(*axes)
    ]


def _choices(spec: StudySpec, plan: Plan) -> dict[str, Plan]:
    """The plan of each choice of target modules; the only one if they are not searched."""
    targets = spec.search_space.target_modules
    return {name: plan.at({TARGETS: name}) for name in ([""] if targets is None else targets.named)}


def _structure_grid(spec: StudySpec, plan: Plan, choices: Mapping[str, Plan]) -> list[dict[str, Any]]:
    if plan.groups:
        return [{METHOD: CDKA, **point} for point in grouped(spec, plan).points(LARGEST_GRID)]
    pairs = plan.pairs
    return [
        {
            METHOD: CDKA,
            TARGETS: name,
            PAIR: pairs.index((pair.r1, pair.r2)),
            R_POSITION: (j + 0.5) / (pair.r_high - pair.r_low + 1),
        }
        for name, choice in choices.items()
        for pair in choice.structures
        for j in range(pair.r_high - pair.r_low + 1)
    ]


def _r_at(pair: Pair, position: float) -> int:
    count = pair.r_high - pair.r_low + 1
    return pair.r_low + min(count - 1, math.floor(position * count))
