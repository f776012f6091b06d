"""Structures for groups of layers as points of a rectangular space.

Each group has its pair (r1, r2) as one integer, and each but the last its share of the budget. A point stands for the
admitted combination of pairs that is nearest, with the numbers of components whose shares are nearest. So every point
is a configuration: one that uses at least ``min_fill`` of the budget, and in which no r can grow within it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from ..domain.plan import Plan
from ..domain.structure import by_group, of_groups

# Numbers of components that are tried for one group, by the number of groups; of more, every k-th.
_MOST = {1: 10_000, 2: 1000, 3: 60, 4: 24}
# Searching for the nearest combination ends after so many.
_MOST_COMBINATIONS = 20_000

Counts = tuple[int, ...]


@lru_cache(8192)
def allocations(units: Counts, limit: int, least: int, low: int, high: int | None) -> tuple[Counts, ...]:
    """The numbers of components, one a group, that use up a budget: each from ``low`` to ``high``.

    ``units`` are the parameters of one component. The sum lies between ``least`` and ``limit``, and no number can grow.
    """
    found: list[Counts] = []

    def extend(chosen: Counts, left: int) -> None:
        k = len(chosen)
        most = (left - low * sum(units[k + 1 :])) // units[k]
        most = most if high is None else min(high, most)
        if most < low:
            return
        # What the rest can use at most must reach the least.
        if high is not None and limit - left + high * sum(units[k:]) < least:
            return
        if k + 1 < len(units):
            step = -(-(most - low + 1) // _MOST[len(units)])
            for r in range(low, most + 1, step):
                extend((*chosen, r), left - r * units[k])
            return
        made, left = (*chosen, most), left - most * units[k]
        full = all(r == high or left < unit for r, unit in zip(made, units, strict=True))
        if full and limit - left >= least:
            found.append(made)

    extend((), limit)
    return tuple(found)


class Grouped:
    """The space of the groups' structures under one budget."""

    def __init__(self, plan: Plan, bounds: tuple[int, int] | None) -> None:
        self.names = sorted(plan.groups)
        self.pairs = [plan.groups[name] for name in self.names]
        self._limit = plan.max_parameters
        self._least = math.ceil(plan.min_fill * plan.max_parameters - 1e-9)
        self._low = 1 if bounds is None else bounds[0]
        self._high = None if bounds is None else bounds[1]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """A structure for each group, and a share for each but the last."""
        space: dict[str, BaseDistribution] = {}
        for name, pairs in zip(self.names, self.pairs, strict=True):
            if len(pairs) > 1:
                space[f"structure.{name}"] = IntDistribution(0, len(pairs) - 1)
        for name in self.names[:-1]:
            space[f"share.{name}"] = FloatDistribution(0.0, 1.0)
        return space

    def allocations(self, indices: Counts) -> tuple[Counts, ...]:
        """The numbers of components of a combination of pairs; empty if the budget does not admit it."""
        return allocations(self._units(indices), self._limit, self._least, self._low, self._high)

    def _units(self, indices: Counts) -> Counts:
        return tuple(pairs[k].unit_parameters for pairs, k in zip(self.pairs, indices, strict=True))

    def _combinations(self) -> Iterator[Counts]:
        return itertools.product(*(range(len(pairs)) for pairs in self.pairs))

    def is_empty(self) -> bool:
        """Whether the budget admits no combination."""
        some = itertools.islice(self._combinations(), _MOST_COMBINATIONS)
        return not any(self.allocations(indices) for indices in some)

    def nearest(self, indices: Counts) -> Counts:
        """The admitted combination that is nearest in steps, and of equally near ones the first."""
        order = itertools.islice(self._combinations(), _MOST_COMBINATIONS)
        far = sorted(order, key=lambda other: sum(abs(a - b) for a, b in zip(indices, other, strict=True)))
        return next(other for other in far if self.allocations(other))

    def params(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The structures that a point stands for."""
        wanted = tuple(int(point.get(f"structure.{name}", 0)) for name in self.names)
        indices = wanted if self.allocations(wanted) else self.nearest(wanted)
        units = self._units(indices)
        shares, left = [], 1.0
        for name in self.names[:-1]:
            shares.append(left * float(point.get(f"share.{name}", 0.5)))
            left -= shares[-1]

        def distance(counts: Counts) -> tuple[float, int]:
            sizes = [r * unit for r, unit in zip(counts, units, strict=True)]
            total = sum(sizes)
            return sum(abs(size / total - s) for size, s in zip(sizes, [*shares, left], strict=True)), -total

        return self._named(indices, min(self.allocations(indices), key=distance))

    def _named(self, indices: Counts, counts: Counts) -> dict[str, Any]:
        found = {}
        for name, pairs, k, r in zip(self.names, self.pairs, indices, counts, strict=True):
            found[name] = (pairs[k].r1, pairs[k].r2, r)
        return of_groups(found)

    def point(self, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """The point of structures; ``None`` if the space does not hold them."""
        asked = by_group(params)
        if sorted(asked) != self.names:
            return None
        point: dict[str, Any] = {}
        sizes = []
        for name, pairs in zip(self.names, self.pairs, strict=True):
            r1, r2, r = asked[name]
            k = next((k for k, pair in enumerate(pairs) if (pair.r1, pair.r2) == (r1, r2)), None)
            if k is None:
                return None
            point[f"structure.{name}"] = k
            sizes.append(r * pairs[k].unit_parameters)
        left = float(sum(sizes))
        for name, size in zip(self.names[:-1], sizes, strict=False):
            point[f"share.{name}"] = size / left
            left -= size
        found = {name: point[name] for name in self.distributions}
        return found if self.params(found) == of_groups(asked) else None

    def parameters(self, params: Mapping[str, Any]) -> int:
        """The parameters of structures that the space holds."""
        asked, total = by_group(params), 0
        for name, pairs in zip(self.names, self.pairs, strict=True):
            r1, r2, r = asked[name]
            total += r * next(p.unit_parameters for p in pairs if (p.r1, p.r2) == (r1, r2))
        return total

    def points(self, most: int) -> list[dict[str, Any]]:
        """A point of each configuration; of more than ``most``, the first ``most + 1``."""
        space = self.distributions
        found = []
        for indices, counts in itertools.islice(self._configurations(), most + 1):
            point = self.point(self._named(indices, counts))
            if point is not None:
                found.append({name: point[name] for name in space})
        return found

    def _configurations(self) -> Iterator[tuple[Counts, Counts]]:
        for indices in self._combinations():
            for counts in self.allocations(indices):
                yield indices, counts

    def size(self, most: int) -> int:
        """How many configurations there are, counted up to ``most + 1``."""
        return sum(1 for _ in itertools.islice(self._configurations(), most + 1))
