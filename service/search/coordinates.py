"""Convert between parameters as users see them and the rectangular space in which samplers work.

The pair (r1, r2) is one integer: its index among the admitted pairs, ordered by r2/r1 and then by size. So no proposal
has to be rejected for divisibility or budget. Samplers know distances between numbers but not between categories; in
this order, pairs that are close behave alike, because r2/r1 determines alignment and, on square layers, cost. r is a
position in ``[0, 1]`` within the range that the pair admits. Ranges differ between pairs, but a position means the same
in all of them: the share of the range that the budget leaves open.
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
from ..domain.study_spec import StudySpec

# The name of the pair in stored points.
PAIR = "structure"
METHOD = "method"
CDKA = "cdka"
# Parameters that only some methods have.
_HAVING: Mapping[str, frozenset[str]] = {
    "alpha": frozenset({CDKA, "krona", "lora", "rslora", "dora", "lokr"}),
    "lora_plus_ratio": frozenset({CDKA, "krona", "lora", "rslora", "dora"}),
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
    if len(plan.structures) > 1:
        space[PAIR] = IntDistribution(0, len(plan.structures) - 1)
    if any(pair.r_low < pair.r_high for pair in plan.structures):
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
    if method == CDKA:
        pair = plan.structures[point.get(PAIR, 0)]
        params: dict[str, Any] = {"r1": pair.r1, "r2": pair.r2, "r": _r_at(pair, point.get(R_POSITION, 1.0))}
    else:
        params = dict(plan.methods[method].sizes)
    if space.method is not None:
        params[METHOD] = method
    for name in space.parameters():
        if has(method, name):
            value = point[name] if name in point else (space.values(name) or [])[0]
            found = getattr(space, name)
            params[name] = _plain(name, found.nearest(value) if isinstance(found, FloatRange) else value)
    return params


def has(method: str, name: str) -> bool:
    """Whether a method has the parameter of that name."""
    return method in _HAVING.get(name, {method})


def is_own(name: str) -> bool:
    """Whether a parameter means something else in each method that has it."""
    return name in ("alpha", "init_weights", "scaling")


def parameters_of(params: Mapping[str, Any], plan: Plan) -> int:
    """The adapter parameters of a proposed configuration."""
    method = method_of(params)
    if method != CDKA:
        return plan.methods[method].parameters
    pair = plan.pair(params["r1"], params["r2"])
    assert pair is not None, "the policy proposed a pair that the plan does not admit"
    return pair.unit_parameters * int(params["r"])


def _plain(name: str, value: Any) -> Any:
    """A value as it is recorded: whole numbers of steps and of real parameters are told apart by the parameter."""
    return value if isinstance(value, str) or name in WHOLE else float(value)


def to_point(params: Mapping[str, Any], spec: StudySpec, plan: Plan) -> dict[str, Any] | None:
    """The point with these parameters of CDKA; ``None`` if the space does not contain it."""
    if method_of(params) != CDKA or CDKA not in spec.search_space.methods():
        return None
    pair = plan.pair(params["r1"], params["r2"])
    if pair is None or not pair.r_low <= params["r"] <= pair.r_high:
        return None
    point: dict[str, Any] = {}
    for name, distribution in distributions(spec, plan).items():
        if name == METHOD:
            point[name] = CDKA
        elif name == PAIR:
            point[name] = plan.structures.index(pair)
        elif name == R_POSITION:
            point[name] = (params["r"] - pair.r_low + 0.5) / (pair.r_high - pair.r_low + 1)
        else:
            if name not in params or not _holds(distribution, params[name]):
                return None
            point[name] = _plain(name, params[name])
    for name in spec.search_space.parameters():
        if name not in point and params.get(name) != (spec.search_space.values(name) or [])[0]:
            return None
    return point


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
    size = len(methods) - (CDKA in methods)
    if CDKA in methods:
        size += sum(pair.r_high - pair.r_low + 1 for pair in plan.structures)
    for name in spec.search_space.parameters():
        values = spec.search_space.values(name)
        size *= steps if values is None else len(values)
    return size


def grid(spec: StudySpec, plan: Plan, steps: int) -> list[dict[str, Any]]:
    """Every point of the space, with ``steps`` evenly spread values of each range of real numbers.

    Every r of every pair has a point of its own.
    """
    methods = spec.search_space.methods()
    structures = [
        {METHOD: CDKA, PAIR: k, R_POSITION: (j + 0.5) / (pair.r_high - pair.r_low + 1)}
        for k, pair in enumerate(plan.structures)
        for j in range(pair.r_high - pair.r_low + 1)
    ]
    others = [{METHOD: method, PAIR: 0, R_POSITION: 0.5} for method in methods if method != CDKA]
    axes: list[list[dict[str, Any]]] = [[*(structures if CDKA in methods else []), *others]]
    for name, found in spec.search_space.parameters().items():
        values = found.grid(steps) if isinstance(found, FloatRange) else spec.search_space.values(name) or []
        axes.append([{name: value} for value in values])
    space = distributions(spec, plan)
    return [
        {name: value for part in parts for name, value in part.items() if name in space}
        for parts in itertools.product(*axes)
    ]


def _r_at(pair: Pair, position: float) -> int:
    count = pair.r_high - pair.r_low + 1
    return pair.r_low + min(count - 1, math.floor(position * count))
