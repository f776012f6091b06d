"""Divisibility of layer dimensions by component sizes."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import IndivisibleError


def divisors(n: int) -> list[int]:
    """All positive divisors of ``n``, ascending."""
    small = [k for k in range(1, int(n**0.5) + 1) if n % k == 0]
    return small + [n // k for k in reversed(small) if k * k != n]


def nearest_divisors(n: int, wanted: int) -> list[int]:
    """The nearest divisors of ``n`` below and above ``wanted``; only one if the other does not exist."""
    below = [d for d in divisors(n) if d < wanted]
    above = [d for d in divisors(n) if d > wanted]
    return below[-1:] + above[:1]


def require_divides(symbol: str, size: int, dimension: str, n: int, layer: str) -> None:
    """Check that a component size divides a layer dimension.

    Raises:
        IndivisibleError: it does not; the message gives the layer, the numbers and the nearest divisors.
    """
    if size < 1 or n % size:
        near = ", ".join(str(d) for d in nearest_divisors(n, size))
        raise IndivisibleError(f"{symbol}={size} does not divide {dimension}={n} of {layer}; divisors near it: {near}")


def common_divisors(dimensions: Sequence[int], limit: int) -> list[int]:
    """Powers of two up to ``limit`` that divide every one of ``dimensions``, ascending."""
    sizes = []
    size = 1
    while size <= limit:
        if all(n % size == 0 for n in dimensions):
            sizes.append(size)
        size *= 2
    return sizes


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is not above ``limit``; at least 1."""
    return next(size for size in range(min(number, limit), 0, -1) if number % size == 0)
