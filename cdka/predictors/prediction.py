"""What a predictor says of one configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..counts import Configuration, ModuleShape, rank_bound


@dataclass(frozen=True, slots=True)
class Prediction:
    """A configuration, its score (higher is better, comparable within one ranking) and why it stands there.

    ``rank_bound`` is the smallest generic rank of dW over the adapted layers (:func:`cdka.rank_bound`).
    """

    configuration: Configuration
    score: float
    reason: str
    rank_bound: int


def predicted(shapes: Sequence[ModuleShape], configuration: Configuration, score: float, reason: str) -> Prediction:
    """A prediction for these layers."""
    bounds = {
        rank_bound(ModuleShape("", *size), *configuration.structure) for size in {(s.d_in, s.d_out) for s in shapes}
    }
    return Prediction(configuration, score, reason, min(bounds))
