"""The paper's rule: small r1, large r2, moderate r."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..counts import Configuration, ModuleShape, share_of_budget
from .prediction import Prediction, predicted


def guideline(
    shapes: Sequence[ModuleShape],
    max_parameters: int,
    candidates: Sequence[Configuration],
    *,
    r1: int = 2,
    floors: Sequence[int] = (4, 2, 1),
    r_cap: int = 8,
) -> list[Prediction]:
    """Rank ``candidates`` by the guideline of arXiv 2602.01267, best first.

    From the paper: r1 small (2 to 4), r2 large, r moderate (2 to 8, not below a floor r*), the default ``(2, 8, 4)``.
    Our interpretation: the floor of 4 and the order. The floor f is the first of ``floors`` for which some
    ``(r1, r2, f)`` fits the budget. Then, in this order: r >= f; ``|log2(r1 / 2)|`` ascending; r2 descending; r
    descending up to ``r_cap``, larger r last. Score = ``1 - position / count``.

    Args:
        shapes: the adapted layers.
        max_parameters: the budget; the reason says which share of it is used.
        candidates: the feasible configurations.
        r1: the preferred r1; if no candidate has it, 1 is preferred and the reason says so.
        floors: floors for r, tried in order.
        r_cap: the largest moderate r.
    """
    preferred = r1 if any(c.r1 == r1 for c in candidates) else 1
    floor = next(
        (f for f in floors if any(c.r1 == preferred and c.r == f for c in candidates)),
        floors[-1],
    )

    def order(c: Configuration) -> tuple[bool, float, int, bool, int]:
        beyond = c.r > r_cap
        return c.r < floor, abs(math.log2(c.r1 / preferred)), -c.r2, beyond, c.r if beyond else -c.r

    ranked = sorted(candidates, key=order)
    note = "" if preferred == r1 else f" (no candidate has r1 = {r1}, so r1 = 1 is preferred)"
    return [
        predicted(shapes, c, 1.0 - position / len(ranked), _reason(c, max_parameters, preferred, floor, r_cap) + note)
        for position, c in enumerate(ranked)
    ]


def _reason(c: Configuration, max_parameters: int, preferred: int, floor: int, r_cap: int) -> str:
    words = [
        f"r1 = {c.r1} is the preferred size" if c.r1 == preferred else f"r1 = {c.r1} is not the preferred {preferred}",
        f"r2 = {c.r2}",
        f"r = {c.r} is below the floor of {floor}"
        if c.r < floor
        else (f"r = {c.r} is above the moderate range (up to {r_cap})" if c.r > r_cap else f"r = {c.r} is moderate"),
        f"{share_of_budget(c.parameters, max_parameters):.0%} of the budget",
    ]
    return ", ".join(words)
