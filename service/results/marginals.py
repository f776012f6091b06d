"""Marginal means: what trials with one value of a parameter would have reached at the mean of all other parameters.

For each parameter one linear model of the completed CDKA trials,

    value = sum_l m_l [its level is l] + terms of the other parameters, each centred, + noise,

so ``m_l`` is the mean at level ``l``, adjusted for the others. Intervals are t intervals with White's HC3 covariance;
those of one parameter's levels hold together (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..domain.records import Observation
from ..domain.statistics import CONFIDENCE
from ..studies.differences import adjusted
from .regression import determines, hc3

RATIO = "r2/r1"
# A parameter with more values is divided into ranges with as many trials each.
_MOST_LEVELS = 6
_RANGES = 3


@dataclass(frozen=True, slots=True)
class Level:
    """A value or a range of a parameter; ``trials`` completed there."""

    level: str
    trials: int
    mean: float
    low: float
    high: float


def marginal_means(done: Sequence[Observation], metric: str, names: Sequence[str]) -> dict[str, list[Level]]:
    """The marginal means of each parameter in ``names`` that varied, and of r2/r1 where both sizes did.

    Levels with one trial are left out, and parameters whose means the trials do not determine.
    """
    asked = [*names, *([RATIO] if {"r1", "r2"} <= set(names) else [])]
    found = {}
    for name in asked:
        labels, level = _levels([_value(t, name) for t in done])
        # One trial would be fitted exactly, so nothing would be known of its noise.
        kept = [k for k in range(len(labels)) if level.count(k) > 1]
        if len(kept) < 2:
            continue
        mine = [t for t, own in zip(done, level, strict=True) if own in kept]
        level = [kept.index(own) for own in level if own in kept]
        labels = [labels[k] for k in kept]
        means = np.array([[float(k == own) for k in range(len(labels))] for own in level])
        design = np.column_stack([means, *_terms(mine, names, name)])
        if not determines(design):
            continue
        slopes, errors = hc3(design, np.array([t.metrics[metric] for t in mine]))
        spare = len(mine) - design.shape[1]
        reach = float(stats.t.ppf(0.5 + adjusted(CONFIDENCE, len(labels)) / 2, spare))
        found[name] = [
            Level(
                label,
                level.count(k),
                float(slopes[k]),
                float(slopes[k] - reach * errors[k]),
                float(slopes[k] + reach * errors[k]),
            )
            for k, label in enumerate(labels)
        ]
    return found


def _value(trial: Observation, name: str) -> float:
    if name == RATIO:
        return float(trial.params["r2"]) / float(trial.params["r1"])
    return float(trial.params[name])


def _levels(values: Sequence[float]) -> tuple[list[str], list[int]]:
    """The labels of the levels, in order, and the level of each value."""
    different = sorted(set(values))
    if len(different) <= _MOST_LEVELS:
        return [f"{v:g}" if v == int(v) else f"{v:.3g}" for v in different], [different.index(v) for v in values]
    edges = np.quantile(values, np.linspace(0, 1, _RANGES + 1)[1:-1])
    level = np.searchsorted(edges, values, side="left").tolist()
    present = sorted(set(level))
    labels = []
    for k in present:
        own = [v for v, at in zip(values, level, strict=True) if at == k]
        labels.append(f"{min(own):.2g} to {max(own):.2g}")
    return labels, [present.index(at) for at in level]


def _terms(done: Sequence[Observation], names: Sequence[str], without: str) -> list[np.ndarray]:
    """The centred terms of the other parameters; the ratio's others have r1 r2, since r1 and r2 give the ratio."""
    scales: list[Callable[[Observation], float]] = []
    for name in names:
        if name == without or (without == RATIO and name in ("r1", "r2")):
            continue
        scales.append(lambda t, name=name: math.log(_value(t, name)))  # type: ignore[misc]
        if name == "learning_rate":
            middle = float(np.mean([math.log(_value(t, name)) for t in done]))
            scales.append(lambda t, name=name, middle=middle: (math.log(_value(t, name)) - middle) ** 2)  # type: ignore[misc]
    if without == RATIO:
        scales.append(lambda t: math.log(t.params["r1"] * t.params["r2"]))
    columns = [np.array([scale(t) for t in done]) for scale in scales]
    chosen = sorted({str(t.params.get("target_modules")) for t in done})
    columns += [np.array([float(str(t.params.get("target_modules")) == name) for t in done]) for name in chosen[1:]]
    return [column - column.mean() for column in columns if len(set(column.tolist())) > 1]
