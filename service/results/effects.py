"""What the structure did in a search: effects with intervals, and predicted against observed.

Effects come from one linear model of the completed CDKA trials,

    value = b0 + b1 log2(r1) + b2 log2(r2) [+ b3 log2(r)] + b4 log2(alpha) + b5 log10(rate) + b6 log10(rate)^2 + noise,

with terms only for what varied; ``log2(r)`` is left out where r fills the budget, because r1 and r2 determine it then.
So the effect of a size is adjusted for learning rate and alpha. Intervals are t intervals with White's HC3 covariance
(MacKinnon, White 1985), which hold where noise differs between configurations; those of several parameters hold
together (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from ..domain.records import Observation, StoredPrediction, Study
from ..domain.statistics import CONFIDENCE
from ..domain.structure import SIZES, Structure
from ..domain.study_spec import Direction
from ..studies.differences import adjusted
from .completed import completed_of_cdka
from .importances import importances_of
from .marginals import Level, marginal_means
from .regression import determines, hc3
from .sentences import Told

_RESAMPLES = 1000
# Of more pairs every k-th is taken, so that resampling takes a second at most.
_MOST_RESAMPLED = 1000
_TOP = 3
_LOG2: Callable[[float], float] = math.log2
# What one unit of each term is, in words.
_UNITS = {
    "r1": "each doubling of r1",
    "r2": "each doubling of r2",
    "r": "each doubling of r",
    "alpha": "each doubling of alpha",
    "learning_rate": "each tenfold learning rate",
}


@dataclass(frozen=True, slots=True)
class Effect:
    """What a parameter did to the metric, per unit (a doubling, or ten times the learning rate), others held fixed.

    ``None`` where nothing can be said; the sentence says why.
    """

    parameter: str
    estimate: float | None
    low: float | None
    high: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """A ranking against what the search observed: rank correlations with bootstrap intervals, and hits at the top."""

    predictor: str
    trials: int
    spearman: tuple[float, float, float] | None
    kendall: tuple[float, float, float] | None
    top: int
    hits: int


@dataclass(frozen=True, slots=True)
class Effects:
    """What the structure did."""

    trials: int
    effects: list[Effect]
    agreements: list[Agreement]
    sentences: list[str]
    # The share of each parameter in telling good trials from others, largest first (PED-ANOVA); they add up to 1.
    importances: dict[str, float] = field(default_factory=dict)
    # The mean at each value of a parameter, adjusted for the others, with intervals.
    means: dict[str, list[Level]] = field(default_factory=dict)


def effects_of(
    study: Study, searched: Sequence[Observation], predictions: Mapping[str, Sequence[StoredPrediction]]
) -> Effects:
    """The effects, as a pure function of records."""
    done = completed_of_cdka(study, searched)
    found = _effects(study, done)
    agreements = [_agreement(study, name, ranking, done) for name, ranking in predictions.items()]
    unknown = [_plain(e.parameter) for e in found if e.estimate is None]
    if unknown:
        told = [f"Nothing can be said about {', '.join(unknown)} from {len(done)} completed trials."]
    else:
        order = sorted(found, key=lambda e: (not _is_clear(e), -abs(e.estimate or 0.0)))
        told = [e.sentence for e in order][:3]
    means = marginal_means(done, study.spec.objective.metric, _varied(study, done))
    return Effects(len(done), found, agreements, told, importances_of(study, done), means)


def _is_clear(effect: Effect) -> bool:
    return effect.low is not None and effect.high is not None and (effect.low > 0 or effect.high < 0)


def _varied(study: Study, done: Sequence[Observation]) -> list[str]:
    """The parameters with an effect of their own: those that varied, and that others do not determine."""
    sizes = [f"{g}.{name}" for name in SIZES for g in study.plan.groups] or list(SIZES)
    # Where groups share a budget, or target modules differ, r says more than r1 and r2 do.
    if study.spec.search_space.r == "fill" and not study.plan.groups and not study.plan.targets:
        sizes = [name for name in sizes if _size(name) != "r"]
    return [n for n in (*sizes, "alpha", "learning_rate") if len({t.params[n] for t in done}) > 1]


def _effects(study: Study, done: Sequence[Observation]) -> list[Effect]:
    names = _varied(study, done)
    if not names:
        return []
    told, metric = Told.of(study), study.spec.objective.metric
    columns, wanted = [np.ones(len(done))], {}
    for name in names:
        scale = math.log10 if name == "learning_rate" else _LOG2
        values = np.array([scale(t.params[name]) for t in done])
        wanted[name] = len(columns)
        columns.append(values - values.mean())
        if name == "learning_rate" and len(set(values)) > 2:
            columns.append((values - values.mean()) ** 2)
    chosen = sorted({str(t.params.get("target_modules")) for t in done})
    columns += [np.array([float(str(t.params.get("target_modules")) == name) for t in done]) for name in chosen[1:]]
    design = np.column_stack(columns)
    few = "Nothing can be said about {} from {} completed trials."
    if not determines(design):
        return [Effect(n, None, None, None, few.format(_plain(n), len(done))) for n in names]
    y = np.array([t.metrics[metric] for t in done])
    slopes, errors = hc3(design, y)
    quantile = float(stats.t.ppf(0.5 + adjusted(CONFIDENCE, len(names)) / 2, len(done) - design.shape[1]))
    better = 1.0 if study.spec.objective.direction is Direction.MAXIMIZE else -1.0
    return [_effect(told, n, slopes[k], quantile * errors[k], better) for n, k in wanted.items()]


def _plain(name: str) -> str:
    group = f" of {_group(name)}" if _group(name) else ""
    return _size(name).replace("_", " ") + group


def _size(name: str) -> str:
    """A parameter's name without its group of layers."""
    return name.rpartition(".")[2]


def _group(name: str) -> str:
    return name.rpartition(".")[0]


def _effect(told: Told, name: str, slope: float, half: float, better: float) -> Effect:
    low, high = slope - half, slope + half
    unit = _UNITS[_size(name)] + (f" of {_group(name)}" if _group(name) else "")
    numbers = f"{told.difference(slope)}, interval {told.bare(low)} to {told.bare(high)}"
    if low > 0 or high < 0:
        how = "improved" if slope * better > 0 else "worsened"
        sentence = f"{unit[0].upper()}{unit[1:]} {how} the result: {numbers}."
    else:
        sentence = f"Nothing can be said about {_plain(name)} from these trials: {unit} changed {numbers}."
    return Effect(name, float(slope), float(low), float(high), sentence)


def _agreement(
    study: Study, predictor: str, ranking: Sequence[StoredPrediction], done: Sequence[Observation]
) -> Agreement:
    metric = study.spec.objective.metric
    sign = 1.0 if study.spec.objective.direction is Direction.MAXIMIZE else -1.0
    scores = {p.structure: p.score for p in ranking}
    pairs = [(scores[s], sign * t.metrics[metric]) for t in done if (s := study.plan.ranked(t.params)) in scores]
    observed: dict[Structure, float] = {}
    for t in done:
        structure = study.plan.ranked(t.params)
        if structure in scores:
            observed[structure] = max(observed.get(structure, -math.inf), sign * t.metrics[metric])
    # Of three structures, every ranking has the best three.
    top = _TOP if len(observed) > _TOP else 0
    predicted = sorted(observed, key=lambda s: -scores[s])[:top]
    best = sorted(observed, key=lambda s: -observed[s])[:top]
    return Agreement(
        predictor,
        len(pairs),
        _correlation(pairs, stats.spearmanr),
        _correlation(pairs, stats.kendalltau),
        top,
        len(set(predicted) & set(best)),
    )


def _correlation(
    pairs: Sequence[tuple[float, float]], measure: Callable[..., object]
) -> tuple[float, float, float] | None:
    """A rank correlation and its percentile interval over resampled trials; ``None`` if it is not defined."""
    step = -(-len(pairs) // _MOST_RESAMPLED) or 1
    data = np.array(pairs[::step], dtype=float).reshape(-1, 2)
    if len(data) < 5 or len(set(data[:, 0])) < 2 or len(set(data[:, 1])) < 2:
        return None
    value = float(measure(data[:, 0], data[:, 1]).statistic)  # type: ignore[attr-defined]
    order = np.random.default_rng(0)
    found = []
    for _ in range(_RESAMPLES):
        drawn = data[order.integers(len(data), size=len(data))]
        if len(set(drawn[:, 0])) > 1 and len(set(drawn[:, 1])) > 1:
            found.append(float(measure(drawn[:, 0], drawn[:, 1]).statistic))  # type: ignore[attr-defined]
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return value, float(low), float(high)
