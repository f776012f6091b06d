"""A predictor's result for one configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..counts import Configuration, ModuleShape, forward_flops, rank_bound


@dataclass(frozen=True, slots=True)
class Prediction:
    """A configuration, its score (higher is better, comparable within one ranking) and the reason.

    ``rank_bound`` is the smallest generic rank of dW over the adapted layers (:func:`cdka.rank_bound`).
    """

    configuration: Configuration
    score: float
    reason: str
    rank_bound: int


def predicted(shapes: Sequence[ModuleShape], configuration: Configuration, score: float, reason: str) -> Prediction:
    """The prediction, completed with the rank bound over these layers."""
    bounds = {
        rank_bound(ModuleShape("", *size), *configuration.structure) for size in {(s.d_in, s.d_out) for s in shapes}
    }
    return Prediction(configuration, score, reason, min(bounds))


def best_first(
    shapes: Sequence[ModuleShape], candidates: Sequence[Configuration], score: Callable[[Configuration], float]
) -> list[tuple[float, Configuration]]:
    """``(score, configuration)``, highest first; ties: fewer forward operations, smaller r1, smaller r2."""
    scored = [(score(c), c) for c in candidates]
    return sorted(scored, key=lambda pair: (-pair[0], forward_flops(shapes, *pair[1].structure), *pair[1].structure))
