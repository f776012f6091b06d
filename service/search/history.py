"""The search trials of a study as the search sees them, with the counts that every ask needs."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..domain.pareto import pareto_front
from ..domain.records import Observation
from ..domain.states import FailureKind, TrialState
from ..domain.structure import SIZES, by_group
from ..domain.study_spec import Direction, Objective

Configuration = tuple[object, ...]
# Besides the structure, what decides how much memory a trial needs.
_MEMORY = ("method", "target_modules", "batch_size", "optimizer")


def configuration(params: dict[str, object]) -> Configuration:
    """The parameters as a key: trials with the same key are replicates."""
    return tuple(sorted(params.items()))


def _size(params: Mapping[str, Any]) -> Configuration:
    """What decides how much memory a trial needs."""
    return (*(params.get(name) for name in (*_MEMORY, *SIZES)), *sorted(by_group(params).items()))


@dataclass
class History:
    """A study's search trials. Updating a kept history and rebuilding it from the database give the same answers.

    Every answer depends only on the observations, not on their order.
    """

    objectives: list[Objective]
    version: int = -1
    _by_number: dict[int, Observation] = field(default_factory=dict)
    _tried: Counter[Configuration] = field(default_factory=Counter)
    _diverged: Counter[Configuration] = field(default_factory=Counter)
    _too_large: Counter[Configuration] = field(default_factory=Counter)
    # Completed trials, best first by the first objective.
    _ranked: list[tuple[float, int]] = field(default_factory=list)

    @classmethod
    def of(cls, objectives: list[Objective], observations: Iterable[Observation]) -> History:
        """A history made from observations."""
        made = cls(objectives)
        made.update(observations)
        return made

    def __len__(self) -> int:
        return len(self._by_number)

    def copy(self) -> History:
        """An independent copy. Takes under 1 ms at 10,000 trials."""
        return History(
            list(self.objectives),
            self.version,
            dict(self._by_number),
            self._tried.copy(),
            self._diverged.copy(),
            self._too_large.copy(),
            list(self._ranked),
        )

    def update(self, observations: Iterable[Observation], version: int | None = None) -> None:
        """Take in trials that are new or have changed."""
        for new in observations:
            old = self._by_number.get(new.number)
            if old is not None:
                self._count(old, -1)
            self._by_number[new.number] = new
            self._count(new, 1)
        if version is not None:
            self.version = version

    def _count(self, seen: Observation, change: int) -> None:
        key = configuration(seen.params)
        if seen.state not in (TrialState.FAILED, TrialState.CANCELLED):
            _add(self._tried, key, change)
        if seen.failure is FailureKind.DIVERGED:
            _add(self._diverged, key, change)
        if seen.failure is FailureKind.OUT_OF_MEMORY:
            _add(self._too_large, _size(seen.params), change)
        if (value := self._value(seen)) is not None:
            entry = (value, seen.number)
            if change > 0:
                insort(self._ranked, entry)
            else:
                del self._ranked[bisect_left(self._ranked, entry)]

    def _value(self, seen: Observation) -> float | None:
        """The first objective of a completed trial, signed so that less is better."""
        values = self.values(seen)
        if seen.state is not TrialState.COMPLETED or values is None:
            return None
        return -values[0] if self.objectives[0].direction is Direction.MAXIMIZE else values[0]

    def values(self, seen: Observation) -> list[float] | None:
        """The objectives of a trial; ``None`` if one is missing."""
        found = [seen.metrics.get(o.metric) for o in self.objectives]
        return None if any(v is None for v in found) else [float(v) for v in found if v is not None]

    def get(self, number: int) -> Observation | None:
        """The trial of that number."""
        return self._by_number.get(number)

    def times_tried(self, params: dict[str, object]) -> int:
        """Number of queued, running and ended trials with these parameters, without failed and cancelled ones."""
        return self._tried[configuration(params)]

    def is_barred(self, params: dict[str, object]) -> bool:
        """Whether these parameters are known not to work: they diverged, or one of their size ran out of memory."""
        return self._diverged[configuration(params)] > 0 or self._too_large[_size(params)] > 0

    def observations(self) -> list[Observation]:
        """Every trial, by number."""
        return [self._by_number[number] for number in sorted(self._by_number)]

    def selected(self, limit: int) -> list[Observation]:
        """Every trial that has not ended, and at most ``limit`` ended ones; no trials for a limit of 0.

        Of the ended ones, takes the ``limit // 4`` best (with several objectives the Pareto front first) and then the
        most recent.
        """
        if limit == 0:
            return []
        everything = self.observations()
        ended = [o for o in everything if o.state not in (TrialState.QUEUED, TrialState.RUNNING)]
        if len(ended) <= limit:
            return everything
        chosen = set(self._best(limit // 4))
        for seen in reversed(ended):
            if len(chosen) >= limit:
                break
            chosen.add(seen.number)
        return [o for o in everything if o.state in (TrialState.QUEUED, TrialState.RUNNING) or o.number in chosen]

    def _best(self, count: int) -> list[int]:
        ranked = [number for _, number in self._ranked]
        if len(self.objectives) == 1:
            return ranked[:count]
        signs = [-1.0 if o.direction is Direction.MAXIMIZE else 1.0 for o in self.objectives]
        points = [[s * v for s, v in zip(signs, self.values(self._by_number[n]) or [], strict=True)] for n in ranked]
        front = [ranked[k] for k in pareto_front(points)]
        return list(dict.fromkeys([*front, *ranked]))[:count]


def _add(counter: Counter[Configuration], key: Configuration, change: int) -> None:
    counter[key] += change
    if not counter[key]:
        del counter[key]
