"""Expected alignment of the first update with full fine-tuning's, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..counts import Configuration, ModuleShape
from .prediction import Prediction, best_first, predicted


def expected_cosine(d_in: int, r1: int, r2: int, r: int) -> float:
    """``sqrt(r / (D + r - 1))`` with ``D = r1 * d_in / r2``.

    Derivation: with B = 0 and random A, the first step of plain gradient descent changes only B, and the change of
    dW, rearranged (Van Loan and Pitsianis 1993) to ``(d_out*r2/r1, D)``, is ``G V V^T`` where the rows of V^T are the
    r vectorised ``A_i``: r random directions of a D-dimensional space. For an isotropic gradient G the cosine
    between ``G V V^T`` and G is ``tr(V V^T) / sqrt(D tr((V V^T)^2))``. With independent directions of unit length
    ``tr(V V^T) = r`` and ``E tr((V V^T)^2) = r + r (r - 1) / D``, which gives the formula.
    """
    dimension = r1 * d_in / r2
    return math.sqrt(r / (dimension + r - 1))


def alignment(
    shapes: Sequence[ModuleShape], max_parameters: int, candidates: Sequence[Configuration]
) -> list[Prediction]:
    """Rank ``candidates`` by ``sqrt(sum_l w_l * cos_l^2)`` with w_l proportional to ``d_in * d_out``, best first.

    Ties go to fewer forward operations, then to smaller r1, then to smaller r2.
    """
    weights = [s.d_in * s.d_out for s in shapes]
    total = sum(weights)

    def score(c: Configuration) -> float:
        squares = (w * expected_cosine(s.d_in, c.r1, c.r2, c.r) ** 2 for w, s in zip(weights, shapes, strict=True))
        return math.sqrt(sum(squares) / total)

    mean_d_in = sum(s.d_in for s in shapes) / len(shapes)

    def dimensions(c: Configuration) -> int:
        return round(c.r1 * mean_d_in / c.r2)

    return [
        predicted(
            shapes,
            c,
            value,
            f"its first update has an expected cosine of {value:.3f} with full fine-tuning's: "
            f"{c.r} random direction{'s' * (c.r > 1)} in a space of about {dimensions(c)} dimensions",
        )
        for value, c in best_first(shapes, candidates, score)
    ]
