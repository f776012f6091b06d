"""Exact parameter counts of CDKA adapters, from layer shapes alone.

Per layer of shape ``(d_out, d_in)`` an adapter has ``r * (r1*d_in/r2 + r2*d_out/r1)`` parameters
(arXiv 2602.01267, section 3). One ``(r1, r2, r)`` serves all adapted layers, so costs are summed over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from .divisors import common_divisors, largest_divisor, require_divides
from .errors import BudgetError, CdkaError

MAX_COMPONENT_SIZE = 64


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A linear layer that carries an adapter: its weight has shape ``(d_out, d_in)``."""

    name: str
    d_in: int
    d_out: int


@dataclass(frozen=True, slots=True, order=True)
class Configuration:
    """A component structure and what it costs, summed over the adapted layers."""

    r1: int
    r2: int
    r: int
    parameters: int

    @property
    def structure(self) -> tuple[int, int, int]:
        """``(r1, r2, r)``."""
        return self.r1, self.r2, self.r


def _require_sizes(r1: int, r2: int, r: int) -> None:
    for symbol, size in (("r1", r1), ("r2", r2), ("r", r)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise CdkaError(f"{symbol}={size!r} is not a component size; give an integer of at least 1")


def require_divisible(shapes: Sequence[ModuleShape], r1: int, r2: int) -> None:
    """Check that r1 divides d_out and r2 divides d_in of every layer.

    Raises:
        IndivisibleError: one does not; the message names the first such layer and the nearest divisors.
    """
    for shape in shapes:
        require_divides("r1", r1, "d_out", shape.d_out, shape.name)
        require_divides("r2", r2, "d_in", shape.d_in, shape.name)


def count_parameters(shapes: Sequence[ModuleShape], r1: int, r2: int, r: int, fit: str = "strict") -> int:
    """Parameters of a CDKA adapter: ``sum over layers of r * (r1*d_in/r2 + r2*d_out/r1)``.

    With ``fit="nearest"`` each layer takes the largest divisors not above r1 and r2, as the adapter would.

    Raises:
        IndivisibleError: r1 does not divide a d_out, or r2 a d_in, and ``fit`` is ``"strict"``.
        CdkaError: a size is not a positive integer, or ``fit`` is unknown.
    """
    _require_sizes(r1, r2, r)
    if fit == "nearest":
        fitted = [(s, largest_divisor(s.d_out, r1), largest_divisor(s.d_in, r2)) for s in shapes]
        return sum(r * (a * (s.d_in // b) + b * (s.d_out // a)) for s, a, b in fitted)
    if fit != "strict":
        raise CdkaError(f"fit={fit!r} is unknown; available: strict, nearest")
    require_divisible(shapes, r1, r2)
    return sum(r * (r1 * (s.d_in // r2) + r2 * (s.d_out // r1)) for s in shapes)


def count_lora_parameters(shapes: Sequence[ModuleShape], rank: int) -> int:
    """Parameters of LoRA of rank ``rank``: ``rank * sum(d_in + d_out)``, which is CDKA's ``(1, 1, rank)``."""
    return count_parameters(shapes, 1, 1, rank)


def rank_bound(shape: ModuleShape, r1: int, r2: int, r: int) -> int:
    """Generic rank of ``dW = sum_i B_i (x) A_i``: the rank that random factors reach almost surely.

    With ``n = d_in/r2`` and ``m = d_out/r1``:
    ``min(r2*min(r*r1, n), r1*min(r*r2, m), r*min(r1, n)*min(r2, m))``.
    """
    _require_sizes(r1, r2, r)
    require_divisible([shape], r1, r2)
    n, m = shape.d_in // r2, shape.d_out // r1
    return min(r2 * min(r * r1, n), r1 * min(r * r2, m), r * min(r1, n) * min(r2, m))


def forward_flops(shapes: Sequence[ModuleShape], r1: int, r2: int, r: int) -> int:
    """Floating-point operations of the factored forward pass per token: ``2 r (r1*d_in + r2*d_out)``."""
    return sum(2 * r * (r1 * s.d_in + r2 * s.d_out) for s in shapes)


def _sizes(given: int | Iterable[int] | None, dimensions: Sequence[int]) -> list[int]:
    if given is None:
        return common_divisors(dimensions, MAX_COMPONENT_SIZE)
    wanted = [given] if isinstance(given, int) else sorted(set(given))
    return [size for size in wanted if size >= 1 and all(n % size == 0 for n in dimensions)]


def feasible(
    shapes: Sequence[ModuleShape],
    max_parameters: int,
    r1: int | Iterable[int] | None = None,
    r2: int | Iterable[int] | None = None,
    r: int | Iterable[int] | None = None,
) -> list[Configuration]:
    """Every ``(r1, r2, r)`` that divides all layers and costs at most ``max_parameters``.

    Args:
        shapes: the adapted layers.
        max_parameters: the budget, in trainable adapter parameters.
        r1: candidate sizes; ``None`` takes the powers of two up to 64 that divide every d_out.
        r2: candidate sizes; ``None`` takes the powers of two up to 64 that divide every d_in.
        r: candidate component counts; ``None`` takes all that fit.

    Returns:
        Configurations ordered by ``(r1, r2, r)``.

    Raises:
        BudgetError: nothing fits; the message names the smallest feasible cost.
        IndivisibleError: none of the named sizes divides every layer.
    """
    if not shapes:
        raise CdkaError("no adapted layers: give at least one ModuleShape")
    pairs = _feasible_pairs(shapes, r1, r2)
    counts = None if r is None else ([r] if isinstance(r, int) else sorted(set(r)))
    found = []
    for size1, size2 in pairs:
        unit = count_parameters(shapes, size1, size2, 1)
        candidates = range(1, max_parameters // unit + 1) if counts is None else counts
        found += [Configuration(size1, size2, k, k * unit) for k in candidates if k >= 1 and k * unit <= max_parameters]
    if not found:
        smallest = min(
            Configuration(a, b, k, count_parameters(shapes, a, b, k)).parameters
            for a, b in pairs
            for k in [min(counts) if counts else 1]
        )
        raise BudgetError(
            f"a budget of {max_parameters} parameters admits no configuration; "
            f"the smallest feasible one costs {smallest}"
        )
    return found


def _feasible_pairs(
    shapes: Sequence[ModuleShape], r1: int | Iterable[int] | None, r2: int | Iterable[int] | None
) -> list[tuple[int, int]]:
    r1_wanted = r1 if r1 is None or isinstance(r1, int) else tuple(r1)
    r2_wanted = r2 if r2 is None or isinstance(r2, int) else tuple(r2)
    sizes1 = _sizes(r1_wanted, [s.d_out for s in shapes])
    sizes2 = _sizes(r2_wanted, [s.d_in for s in shapes])
    for symbol, sizes, wanted, dimension in (("r1", sizes1, r1_wanted, "d_out"), ("r2", sizes2, r2_wanted, "d_in")):
        if not sizes and wanted is not None:
            first = wanted if isinstance(wanted, int) else min(wanted, default=0)
            for shape in shapes:
                require_divides(symbol, first, dimension, getattr(shape, dimension), shape.name)
            # Each size divides some layer, none divides all of them.
            common = ", ".join(map(str, common_divisors([getattr(s, dimension) for s in shapes], MAX_COMPONENT_SIZE)))
            raise CdkaError(f"no {symbol} of {wanted} divides every {dimension}; common divisors: {common}")
    return [(a, b) for a in sizes1 for b in sizes2]


def largest_r(shapes: Sequence[ModuleShape], max_parameters: int, r1: int, r2: int) -> int:
    """The largest r that the budget admits for ``(r1, r2)``; 0 if not even one component fits."""
    return max_parameters // count_parameters(shapes, r1, r2, 1)


def share_of_budget(parameters: int, max_parameters: int) -> float:
    """The used share of a budget, rounded down to four decimal places, so that 1.0 means all of it."""
    return float(Fraction(parameters * 10_000 // max_parameters, 10_000))
