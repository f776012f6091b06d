"""What a search was worth: the best so far against trials, GPU time and money, and when it passed the guideline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from opda.nonparametric import EmpiricalDistribution

from ..domain.metrics import CORRELATIONS, IN_POINTS
from ..domain.records import Study, Trial
from ..domain.states import TrialPhase, TrialState
from ..domain.statistics import CONFIDENCE
from ..domain.study_spec import Direction
from .sentences import Told, duration

# How far the curve of the expected best looks ahead, in trials beyond those that were made.
_AHEAD = 20
_FEWEST = 5
_LONGEST_CURVE = 200
_MOST_DRAWN = 2_000


@dataclass(frozen=True, slots=True)
class Progress:
    """The search when a trial ended: trials, device seconds and wall seconds so far, and the best value."""

    trials: int
    device_seconds: float
    wall_seconds: float
    best: float


@dataclass(frozen=True, slots=True)
class Reference:
    """The guideline's own trial in the search, and when the search passed it; ``passed`` is ``None`` until it has."""

    number: int
    value: float
    passed: Progress | None


@dataclass(frozen=True, slots=True)
class Expected:
    """Per number of trials, the median of the best of so many random trials, with simultaneous 95 % bands.

    Of a metric without bounds, a band may have no end (``None``).
    """

    trials: list[int]
    median: list[float]
    low: list[float | None]
    high: list[float | None]


@dataclass(frozen=True, slots=True)
class Worth:
    """What a search was worth. ``device`` is ``GPU`` or ``CPU``; ``price`` the money spent, if an hour has a price."""

    device: str
    trials: int
    device_seconds: float
    by_phase: dict[str, float]
    price: float | None
    records: list[Progress]
    guideline: Reference | None
    expected: Expected | None
    sentences: list[str]


def worth_of(study: Study, trials: Sequence[Trial]) -> Worth:
    """The worth of a study's search, as a pure function of its trials of all phases."""
    metric = study.spec.objective.metric
    gpus = study.spec.resources.shape.gpus
    by_phase: dict[str, float] = {}
    for trial in trials:
        by_phase[trial.phase] = by_phase.get(trial.phase, 0.0) + _device_seconds(trial, gpus)
    searched = [t for t in trials if t.phase is TrialPhase.SEARCH and t.start_from is None]
    ended = sorted((t for t in searched if t.finished_at is not None), key=lambda t: (t.finished_at, t.number))
    better = max if study.spec.objective.direction is Direction.MAXIMIZE else min
    records: list[Progress] = []
    spent, began = 0.0, study.started_at or study.created_at
    guideline = next((t for t in searched if t.candidate == "guideline" and metric in t.metrics), None)
    reference: Reference | None = None
    if guideline is not None and guideline.state is TrialState.COMPLETED:
        reference = Reference(guideline.number, guideline.metrics[metric], None)
    for count, trial in enumerate(ended, start=1):
        spent += _device_seconds(trial, gpus)
        value = trial.metrics.get(metric, math.nan)
        if trial.state is not TrialState.COMPLETED or not math.isfinite(value) or trial.finished_at is None:
            continue
        if not records or better(records[-1].best, value) != records[-1].best:
            now = Progress(count, spent, (trial.finished_at - began).total_seconds(), value)
            records.append(now)
            if reference is not None and reference.passed is None and better(reference.value, value) != reference.value:
                reference = Reference(reference.number, reference.value, now)
    total = sum(by_phase.values())
    device = "GPU" if gpus else "CPU"
    price_per_hour = study.spec.limits.gpu_hour_price
    price = None if price_per_hour is None or not gpus else total / 3600 * price_per_hour
    found = Worth(device, len(ended), total, by_phase, price, records, reference, _expected(study, searched), [])
    found.sentences.extend(_sentences(study, found))
    return found


def _device_seconds(trial: Trial, gpus: float) -> float:
    name = "gpu_seconds" if gpus else "seconds"
    value = trial.resources.get(name, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0


def _expected(study: Study, searched: Sequence[Trial]) -> Expected | None:
    """For independent draws only: other samplers' trials depend on each other, and pruned ones have no final value."""
    metric, search = study.spec.objective.metric, study.spec.search
    if search.sampler != "random" or search.pruner != "none":
        return None
    drawn = [
        t.metrics[metric]
        for t in searched
        if t.state is TrialState.COMPLETED and t.candidate is None and t.cloned_from is None and metric in t.metrics
    ]
    if len(drawn) < _FEWEST or len(set(drawn)) < 2:
        return None
    minimise = study.spec.objective.direction is Direction.MINIMIZE
    counts = list(range(1, min(_LONGEST_CURVE, len(drawn) + _AHEAD) + 1))
    lowest = -1.0 if metric in CORRELATIONS else 0.0
    bounds = (lowest, 1.0) if metric in IN_POINTS else (-math.inf, math.inf)
    # Shares of few test examples repeat; of the bands, those of Dvoretzky, Kiefer and Wolfowitz hold for such values.
    bands = EmpiricalDistribution.confidence_bands(
        np.array(drawn[-_MOST_DRAWN:]), CONFIDENCE, *bounds, generator=np.random.default_rng(0), method="dkw"
    )
    first, middle, last = (band.quantile_tuning_curve(counts, minimize=minimise).tolist() for band in bands)
    # The lower band of the distribution is the upper one of the curve.
    low, high = sorted((first, last))
    return Expected(counts, middle, [_finite(v) for v in low], [_finite(v) for v in high])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


_PHASES: Mapping[str, str] = {
    TrialPhase.SEARCH: "the search",
    TrialPhase.RECHECK: "rechecking",
    TrialPhase.TUNING: "tuning",
    TrialPhase.CONFIRMATION: "confirming",
}


def _sentences(study: Study, worth: Worth) -> list[str]:
    told = Told.of(study)
    parts = [f"{duration(worth.by_phase[p])} for {named}" for p, named in _PHASES.items() if worth.by_phase.get(p)]
    said = []
    if parts:
        money = "" if worth.price is None else f", {worth.price:,.2f} at {study.spec.limits.gpu_hour_price:g} an hour"
        said.append(
            f"The study took {duration(worth.device_seconds)} of {worth.device} time: {', '.join(parts)}{money}."
        )
    reference = worth.guideline
    if reference is not None and worth.records:
        last = worth.records[-1]
        if reference.passed is None:
            said.append(
                f"No trial of the search passed the guideline's own ({told.value(reference.value)} on validation)."
            )
        else:
            at, gain = reference.passed, abs(last.best - reference.value)
            said.append(
                f"The search passed the guideline's own trial ({told.value(reference.value)}) after {at.trials} trials "
                f"and {duration(at.device_seconds)} of {worth.device} time, and ended {told.size(gain)} ahead "
                "on validation, where the winner was chosen."
            )
    if worth.expected is not None:
        now, later = worth.trials, worth.expected.trials[-1]
        value = worth.expected.median[-1]
        low, high = worth.expected.low[-1], worth.expected.high[-1]
        band = (
            f"between {told.value(low)} and {told.value(high)}" if low is not None and high is not None else "unknown"
        )
        said.append(
            f"The best of {later} random trials (now {now}) would be {told.value(value)} in the median; with 95 % "
            f"confidence {band}."
        )
    elif study.spec.search.sampler != "random":
        said.append(
            f"What further trials would bring is not estimated: trials of the sampler {study.spec.search.sampler} "
            "depend on each other. It is for random without a pruner."
        )
    return said
