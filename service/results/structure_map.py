"""The structures (r1, r2) of a study as a map: what the budget admits, what was tried there, and who chose what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..domain.records import Observation, StoredPrediction, Study
from ..domain.structure import uniform
from ..domain.study_spec import Direction
from ..search.coordinates import CDKA, method_of
from ..studies.recheck import Winner
from ..studies.structures import Admission, admissions
from .completed import completed_of_cdka, with_structure

# With fewer trials a learning rate's effect cannot be told apart from the structure's.
_FEWEST = 10
LEVELS = 9
# Of a longer search the values of every k-th trial are taken, so that a page is made in time.
_MOST = 5_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One pair (r1, r2). ``value`` is the mean of its completed trials, adjusted for learning rate and alpha.

    ``level`` places it among the cells, from 0 (worst) to ``LEVELS - 1``; ``marks`` names who chose it.
    """

    r1: int
    r2: int
    r: int | None
    share: float
    reason: str | None
    trials: int = 0
    value: float | None = None
    level: int | None = None
    marks: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StructureMap:
    """Rows are r1, columns r2, ascending. ``adjusted`` says whether values are adjusted for learning rate and alpha."""

    rows: list[list[Cell]]
    adjusted: bool
    elsewhere: int

    @property
    def columns(self) -> list[int]:
        """The r2."""
        return [cell.r2 for cell in self.rows[0]] if self.rows else []


def structure_map(
    study: Study,
    searched: Sequence[Observation],
    predictions: Mapping[str, Sequence[StoredPrediction]],
    won: Winner | None,
) -> StructureMap:
    """The map, as a pure function of records."""
    metric = study.spec.objective.metric
    whole = completed_of_cdka(study, searched)
    done = with_structure(whole)
    counts = Counter((t.params["r1"], t.params["r2"]) for t in done)
    sampled = done[:: -(-len(done) // _MOST) or 1]
    values, adjusted = _adjusted(sampled, metric)
    by_pair: dict[tuple[int, int], list[float]] = {}
    for trial, value in zip(sampled, values, strict=True):
        by_pair.setdefault((trial.params["r1"], trial.params["r2"]), []).append(value)
    found = admissions(study.plan, study.spec.search_space)
    means = {pair: float(np.mean(v)) for pair, v in by_pair.items()}
    levels = _levels(means, study.spec.objective.direction)
    marks = _marks(predictions, won)
    rows: dict[int, list[Cell]] = {}
    for one in found:
        rows.setdefault(one.r1, []).append(_cell(one, counts, means, levels, marks))
    shown = {(one.r1, one.r2) for one in found}
    elsewhere = len(whole) - len(done) + sum(n for pair, n in counts.items() if pair not in shown)
    return StructureMap(list(rows.values()), adjusted, elsewhere)


def _cell(
    one: Admission,
    counts: Mapping[tuple[int, int], int],
    means: Mapping[tuple[int, int], float],
    levels: Mapping[tuple[int, int], int],
    marks: Mapping[tuple[int, int], list[str]],
) -> Cell:
    pair = (one.r1, one.r2)
    return Cell(
        one.r1,
        one.r2,
        one.r,
        one.share,
        one.reason,
        counts.get(pair, 0),
        means.get(pair),
        levels.get(pair),
        list(marks.get(pair, [])),
    )


def _adjusted(done: Sequence[Observation], metric: str) -> tuple[list[float], bool]:
    """The trials' values, less what learning rate and alpha explain of them beside the structure."""
    values = np.array([t.metrics[metric] for t in done])
    if len(done) < _FEWEST:
        return values.tolist(), False
    rate = np.log10([t.params["learning_rate"] for t in done])
    alpha = np.log2([t.params["alpha"] for t in done])
    pairs = sorted({(t.params["r1"], t.params["r2"]) for t in done})
    groups = np.array([[(t.params["r1"], t.params["r2"]) == p for p in pairs] for t in done], dtype=float)
    modules = [str(t.params.get("target_modules")) for t in done]
    others = [np.array([float(m == name) for m in modules]) for name in sorted(set(modules))[1:]]
    training = np.column_stack([rate - rate.mean(), (rate - rate.mean()) ** 2, alpha - alpha.mean(), *others])
    training = training[:, np.ptp(training, axis=0) > 0]
    if len(done) < len(pairs) + training.shape[1] + 3:
        return values.tolist(), False
    slopes = np.linalg.lstsq(np.column_stack([groups, training]), values, rcond=None)[0][len(pairs) :]
    return (values - (training - training.mean(axis=0)) @ slopes).tolist(), True


def _levels(means: Mapping[tuple[int, int], float], direction: Direction) -> dict[tuple[int, int], int]:
    if not means:
        return {}
    low, high = min(means.values()), max(means.values())
    if high == low:
        return dict.fromkeys(means, LEVELS // 2)
    sign = 1 if direction is Direction.MAXIMIZE else -1
    places = {pair: (value - low) / (high - low) for pair, value in means.items()}
    return {pair: round((p if sign > 0 else 1 - p) * (LEVELS - 1)) for pair, p in places.items()}


def _marks(
    predictions: Mapping[str, Sequence[StoredPrediction]], won: Winner | None
) -> dict[tuple[int, int], list[str]]:
    marks: dict[tuple[int, int], list[str]] = {}
    for name, ranking in predictions.items():
        if ranking:
            marks.setdefault((ranking[0].r1, ranking[0].r2), []).append(name)
    if won is not None and method_of(won.trial.params) == CDKA and (best := uniform(won.trial.params)):
        marks.setdefault(best[:2], []).append("best found")
    return marks
