"""What a predictor says of one configuration."""

from __future__ import annotations

from dataclasses import dataclass

from ..counts import Configuration


@dataclass(frozen=True, slots=True)
class Prediction:
    """A configuration, its score (higher is better, comparable within one ranking) and why it stands there."""

    configuration: Configuration
    score: float
    reason: str
