"""Confidence intervals for few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
# With two seeds the t quantile is 12.7, so the interval would be useless.
FEWEST_SEEDS = 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds with its sample standard deviation and 95 % interval, if there are enough seeds."""

    mean: float
    spread: float | None
    low: float | None
    high: float | None
    seeds: int


def _half_width(seed_values: np.ndarray, example_values: np.ndarray | None) -> float | None:
    """``sqrt((t_{n-1} s / sqrt n)^2 + (z e)^2)``: spread over seeds, and over the draw of the test examples.

    All seeds share the test split, so their spread does not cover its sampling. ``e`` is the standard error over
    examples of the seed-averaged values, less the part due to the seeds' noise.
    """
    n = len(seed_values)
    if n < FEWEST_SEEDS:
        return None
    seed_error = float(np.std(seed_values, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * seed_error
    if example_values is None or example_values.shape[1] < 2:
        return half
    averaged = example_values.mean(axis=0)
    residual = example_values - averaged - example_values.mean(axis=1, keepdims=True) + example_values.mean()
    examples = example_values.shape[1]
    noise = float((residual**2).sum()) / ((n - 1) * (examples - 1)) / n
    variance = max(0.0, float(np.var(averaged, ddof=1)) - noise)
    return math.hypot(half, float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * math.sqrt(variance / examples))


def estimate(values: Sequence[float], scores: Sequence[Sequence[float]] | None = None) -> Estimate:
    """Mean over seeds with a t interval, widened by the sampling of test examples if scores are given.

    Args:
        values: one metric value per seed.
        scores: per seed, the metric's value on every test example, in one order; shape ``(seeds, examples)``.
    """
    data = np.asarray(values, dtype=float)
    spread = float(np.std(data, ddof=1)) if len(data) > 1 else None
    half = _half_width(data, None if scores is None else np.asarray(scores, dtype=float))
    mean = float(data.mean())
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Estimate(mean, spread, low, high, len(data))


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    first_scores: Sequence[Sequence[float]] | None = None,
    second_scores: Sequence[Sequence[float]] | None = None,
) -> Estimate:
    """Mean of ``first - second`` over the seeds they share, paired by seed and by test example."""
    scores = None
    if first_scores is not None and second_scores is not None:
        scores = np.asarray(first_scores, dtype=float) - np.asarray(second_scores, dtype=float)
    values = [a - b for a, b in zip(first, second, strict=True)]
    return estimate(values, None if scores is None else scores.tolist())


def spearman(predicted: Sequence[float], observed: Sequence[float]) -> float | None:
    """Rank correlation; ``None`` for fewer than three pairs or if one side is constant."""
    if len(predicted) < 3 or len(set(predicted)) < 2 or len(set(observed)) < 2:
        return None
    return float(stats.spearmanr(predicted, observed).statistic)
