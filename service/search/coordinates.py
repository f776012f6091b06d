"""Between parameters as users see them and the rectangular space in which samplers work.

The pair (r1, r2) is one number: its place among the admitted structures, ordered by r2/r1 and then by size. So
divisibility and budget need no rejection, and samplers (which know distances between numbers, not between
categories) see near structures as near: r2/r1 decides alignment and, on square layers, cost. r is a position in
``[0, 1]`` within the range that the structure admits: the range differs from structure to structure, a position
means the same in all of them (its share of what the budget leaves open).
"""

from __future__ import annotations

import math
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ..domain.plan import Plan
from ..domain.search_space import FloatChoices, FloatRange, Structure
from ..domain.study_spec import StudySpec

STRUCTURE = "structure"
R_POSITION = "r_position"


def distributions(spec: StudySpec, plan: Plan) -> dict[str, BaseDistribution]:
    """The sampler's space; parameters with a single value are not in it."""
    space: dict[str, BaseDistribution] = {}
    if len(plan.structures) > 1:
        space[STRUCTURE] = IntDistribution(0, len(plan.structures) - 1)
    if any(s.r_low < s.r_high for s in plan.structures):
        space[R_POSITION] = FloatDistribution(0.0, 1.0)
    for name, values in spec.search_space.numbers().items():
        if isinstance(values, FloatRange):
            space[name] = FloatDistribution(values.low, values.high, log=values.log)
        elif isinstance(values, FloatChoices) and len(set(values.choices)) > 1:
            space[name] = CategoricalDistribution(sorted(set(values.choices)))
    return space


def to_params(point: dict[str, Any], spec: StudySpec, plan: Plan) -> dict[str, Any]:
    """The parameters that a point stands for."""
    structure = plan.structures[point.get(STRUCTURE, 0)]
    params: dict[str, Any] = {"r1": structure.r1, "r2": structure.r2, "r": _r_at(structure, point.get(R_POSITION, 1.0))}
    for name, values in spec.search_space.numbers().items():
        if name in point:
            params[name] = float(point[name])
        else:
            params[name] = float(values.choices[0] if isinstance(values, FloatChoices) else values)
    return params


def _r_at(structure: Structure, position: float) -> int:
    count = structure.r_high - structure.r_low + 1
    return structure.r_low + min(count - 1, math.floor(position * count))
