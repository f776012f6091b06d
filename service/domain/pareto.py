"""Pareto fronts in n log n."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point dominates, ascending; less is better in every coordinate.

    One point dominates another if it is nowhere worse and somewhere better; equal points do not dominate each other.
    Points are visited in lexicographic order, so only an earlier point can dominate a later one. A staircase over the
    other coordinates of the visited points tells whether one does (Kung, Luccio, Preparata 1975).

    Raises:
        ValueError: the points have more than three coordinates.
    """
    if not points:
        return []
    width = len(points[0])
    if width > 3:
        raise ValueError(f"fronts are computed for up to three objectives, not {width}")
    order = sorted(range(len(points)), key=lambda k: tuple(points[k]))
    if width == 1:
        best = points[order[0]][0]
        return sorted(k for k in order if points[k][0] == best)
    stairs = _Staircase()
    front = []
    previous: tuple[float, ...] | None = None
    kept = False
    for k in order:
        point = tuple(points[k])
        if point != previous:
            rest = (point[1], point[2]) if width == 3 else (point[1], 0.0)
            kept = stairs.add(*rest)
            previous = point
        if kept:
            front.append(k)
    return sorted(front)


class _Staircase:
    """The minimal points of a growing set in the plane: x ascending, y strictly descending."""

    def __init__(self) -> None:
        self._x: list[float] = []
        self._y: list[float] = []

    def add(self, x: float, y: float) -> bool:
        """Add a point unless one is nowhere worse; returns whether it was added."""
        k = bisect_left(self._x, x)
        if (k < len(self._x) and self._x[k] == x and self._y[k] <= y) or (k > 0 and self._y[k - 1] <= y):
            return False
        end = k
        while end < len(self._x) and self._y[end] >= y:
            end += 1
        self._x[k:end] = [x]
        self._y[k:end] = [y]
        return True
