"""Confidence intervals for few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
# With two seeds the t quantile is 12.7, so the interval would be useless.
FEWEST_SEEDS = 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds with its sample standard deviation and interval, if there are enough seeds.

    ``confidence`` is the interval's own: higher where several intervals hold together.
    """

    mean: float
    spread: float | None
    low: float | None
    high: float | None
    seeds: int
    confidence: float = CONFIDENCE


def _half_width(seed_values: np.ndarray, example_values: np.ndarray | None, confidence: float) -> float | None:
    """``sqrt((t_{n-1} s / sqrt n)^2 + (z e)^2)``: spread over seeds, and over the draw of the test examples.

    All seeds share the test split, so their spread does not cover its sampling. ``e`` is the standard error over
    examples of the seed-averaged values, less the part due to the seeds' noise.
    """
    n = len(seed_values)
    if n < FEWEST_SEEDS:
        return None
    seed_error = float(np.std(seed_values, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * seed_error
    if example_values is None or example_values.shape[1] < 2:
        return half
    averaged = example_values.mean(axis=0)
    residual = example_values - averaged - example_values.mean(axis=1, keepdims=True) + example_values.mean()
    examples = example_values.shape[1]
    noise = float((residual**2).sum()) / ((n - 1) * (examples - 1)) / n
    variance = max(0.0, float(np.var(averaged, ddof=1)) - noise)
    return math.hypot(half, float(stats.norm.ppf(0.5 + confidence / 2)) * math.sqrt(variance / examples))


def estimate(
    values: Sequence[float], scores: Sequence[Sequence[float]] | None = None, confidence: float = CONFIDENCE
) -> Estimate:
    """Mean over seeds with a t interval, widened by the sampling of test examples if scores are given.

    Args:
        values: one metric value per seed.
        scores: per seed, the metric's value on every test example, in one order; shape ``(seeds, examples)``.
        confidence: the probability with which the interval covers the true mean.
    """
    data = np.asarray(values, dtype=float)
    spread = float(np.std(data, ddof=1)) if len(data) > 1 else None
    half = _half_width(data, None if scores is None else np.asarray(scores, dtype=float), confidence)
    mean = float(data.mean())
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Estimate(mean, spread, low, high, len(data), confidence)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    first_scores: Sequence[Sequence[float]] | None = None,
    second_scores: Sequence[Sequence[float]] | None = None,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Mean of ``first - second`` over the seeds they share, paired by seed and by test example."""
    scores = None
    if first_scores is not None and second_scores is not None:
        scores = np.asarray(first_scores, dtype=float) - np.asarray(second_scores, dtype=float)
    values = [a - b for a, b in zip(first, second, strict=True)]
    return estimate(values, None if scores is None else scores.tolist(), confidence)


@dataclass(frozen=True, slots=True)
class Chance:
    """A probability with its 95 % interval, if there are enough values."""

    value: float
    low: float | None
    high: float | None


def chance_of_more(first: Sequence[float], second: Sequence[float]) -> Chance | None:
    """The probability that a fresh value of ``first`` is larger than one of ``second``; ties count half.

    The interval is Newcombe's (method 5 of "Confidence intervals for an effect size measure based on the Mann-Whitney
    statistic", Statistics in Medicine 25, 2006): all probabilities p from which the share of pairs that was seen is at
    most 1.96 standard errors of Hanley and McNeil away. ``None`` without values.
    """
    m, n = len(first), len(second)
    if not m or not n:
        return None
    seen = float(np.mean([(a > b) + 0.5 * (a == b) for a in first for b in second]))
    if min(m, n) < FEWEST_SEEDS:
        return Chance(seen, None, None)
    half, z = (m + n) / 2 - 1, float(stats.norm.ppf(0.5 + CONFIDENCE / 2))

    def excess(p: float) -> float:
        spread = p * (1 - p) * (1 + half * ((1 - p) / (2 - p) + p / (1 + p))) / (m * n)
        return (seen - p) ** 2 - z**2 * spread

    # At the ends of [0, 1] the excess is not negative, and around what was seen it is.
    inside = min(max(seen, 1e-9), 1 - 1e-9)
    low = 0.0 if seen == 0 else float(optimize.brentq(excess, 0.0, inside))
    high = 1.0 if seen == 1 else float(optimize.brentq(excess, inside, 1.0))
    return Chance(seen, low, high)


def spearman(predicted: Sequence[float], observed: Sequence[float]) -> float | None:
    """Rank correlation; ``None`` for fewer than three pairs or if one side is constant."""
    if len(predicted) < 3 or len(set(predicted)) < 2 or len(set(observed)) < 2:
        return None
    return float(stats.spearmanr(predicted, observed).statistic)
