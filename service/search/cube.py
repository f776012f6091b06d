"""Samplers' points as positions in a unit cube."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution


def steps_of(distribution: BaseDistribution) -> Sequence[Any] | None:
    """The values of a discrete distribution in order; ``None`` for a range of numbers."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution):
        if not distribution.log:
            return range(distribution.low, distribution.high + 1, distribution.step)
    elif isinstance(distribution, FloatDistribution) and distribution.step is not None:
        count = round((distribution.high - distribution.low) / distribution.step) + 1
        return [float(f"{distribution.low + k * distribution.step:.12g}") for k in range(count)]
    return None


@dataclass(frozen=True, slots=True)
class _Line:
    """A range of numbers, in its logarithm if it is searched so; an integer is the middle of a stretch of its own."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, distribution: BaseDistribution) -> _Line:
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        wide = 0.5 if isinstance(distribution, IntDistribution) else 0.0
        return cls(distribution.low - wide, distribution.high + wide, distribution.log)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else value

    def place(self, value: float) -> float:
        low, high = self._scaled(self.low), self._scaled(self.high)
        return (self._scaled(value) - low) / (high - low)

    def at(self, place: float) -> float:
        low, high = self._scaled(self.low), self._scaled(self.high)
        found = low + place * (high - low)
        return min(self.high, max(self.low, math.exp(found) if self.log else found))


def place_of(distribution: BaseDistribution, value: Any) -> float:
    """The position of a value in its range, from 0 to 1; the middle of its step for a discrete value."""
    if (steps := steps_of(distribution)) is not None:
        nearest = steps.index(value) if value in steps else min(range(len(steps)), key=lambda k: abs(steps[k] - value))
        return (nearest + 0.5) / len(steps)
    return _Line.of(distribution).place(value)


def value_at(distribution: BaseDistribution, place: float) -> Any:
    """The value at a place from 0 to 1."""
    place = min(max(place, 0.0), 1.0)
    if (steps := steps_of(distribution)) is not None:
        return steps[min(len(steps) - 1, int(place * len(steps)))]
    found = _Line.of(distribution).at(place)
    if isinstance(distribution, IntDistribution):
        return min(distribution.high, max(distribution.low, round(found)))
    return found


class Cube:
    """A space as a unit cube: one side for each number, one for each of several names.

    Numbers written as choices are ordered steps. A point's coordinates are its positions; of names, the chosen one has
    ``1 / sqrt 2`` and the others 0, so that two different names are at distance 1.
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = dict(sorted(space.items()))
        self.names = {
            name: list(d.choices)
            for name, d in self.space.items()
            if isinstance(d, CategoricalDistribution) and any(isinstance(c, str) for c in d.choices)
        }

    @property
    def width(self) -> int:
        """Numbers that a point is drawn from: one a parameter."""
        return len(self.space)

    def point(self, places: Sequence[float] | np.ndarray) -> dict[str, Any]:
        """The values at these positions, one a parameter."""
        return {name: value_at(d, float(p)) for (name, d), p in zip(self.space.items(), places, strict=False)}

    def places(self, point: Mapping[str, Any]) -> list[float]:
        """The positions of a point, one a parameter."""
        return [place_of(d, point[name]) for name, d in self.space.items()]

    def features(self, point: Mapping[str, Any]) -> np.ndarray:
        """The coordinates of a point."""
        found: list[float] = []
        for name, distribution in self.space.items():
            if name in self.names:
                found += [(choice == point[name]) / math.sqrt(2) for choice in self.names[name]]
            else:
                found.append(place_of(distribution, point[name]))
        return np.array(found)
