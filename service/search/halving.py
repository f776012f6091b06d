"""Successive halving that holds a trial at a rung and continues it later, as a pure function of the history.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (ASHA, arXiv 1810.05934), algorithm 2: of n trials
with a value at a rung, the best ``floor(n / factor)`` go on to the next. A trial outside of them waits with its
checkpoint, and is promoted once later values put it among them. Rung k is at evaluation ``first * factor^k``. The last
evaluation of a trial is no rung: nothing is left to stop there.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..domain.records import Observation
from ..domain.study_spec import Direction


@dataclass(frozen=True, slots=True)
class Bracket:
    """The rungs of a trial: rung 0 is at evaluation ``first``, each further one ``factor`` times as far."""

    first: int
    factor: int

    def is_rung(self, evaluation: int) -> bool:
        """Whether a trial is judged at this evaluation."""
        return self.last_rung(evaluation) == evaluation

    def last_rung(self, evaluations: int) -> int | None:
        """The last rung that a trial with so many evaluations reached; ``None`` if it reached none."""
        place, reached = self.first, None
        while place <= evaluations:
            place, reached = place * self.factor, place
        return reached


def bracket_count(low: int, high: int, factor: int) -> int:
    """The number of Hyperband's brackets: ``floor(log_factor(high / low)) + 1``, in integers (arXiv 1603.06560)."""
    count = 1
    while low * factor**count <= high:
        count += 1
    return count


def hyperband_bracket(low: int, high: int, factor: int, seed: int, number: int) -> Bracket:
    """The bracket of a trial of Hyperband.

    A bracket that starts later gets fewer trials: bracket s of S + 1 gets them in proportion to the
    ``ceil((S + 1) / (S - s + 1) * factor^(S - s))`` configurations that Hyperband starts in it. Which trial goes where
    depends on the study's seed and the trial's number alone.
    """
    count = bracket_count(low, high, factor)
    shares = [math.ceil(count * factor ** (count - 1 - s) / (count - s)) for s in range(count)]
    place = zlib.crc32(f"{seed}:{number}".encode()) % sum(shares)
    for s, share in enumerate(shares):
        if place < share:
            return Bracket(low * factor**s, factor)
        place -= share
    raise AssertionError("the shares cover every place")


def best_at(
    trials: Iterable[Observation], evaluation: int, factor: int, direction: Direction, least: int = 0
) -> set[int]:
    """The numbers of the best ``max(least, floor(n / factor))`` of the n trials that have this evaluation.

    Equal values rank by number, and values that are not finite last.
    """
    values = {t.number: t.curve[evaluation - 1] for t in trials if len(t.curve) >= evaluation}
    return set(_ranked(values, direction)[: max(least, len(values) // factor)])


def best_first(trials: Sequence[Observation], direction: Direction) -> list[int]:
    """The numbers of trials, those that got furthest first, then by their last value."""
    values = {t.number: t.curve[-1] if t.curve else math.nan for t in trials}
    order = {number: k for k, number in enumerate(_ranked(values, direction))}
    return [t.number for t in sorted(trials, key=lambda t: (-len(t.curve), order[t.number]))]


def _ranked(values: dict[int, float], direction: Direction) -> list[int]:
    sign = -1.0 if direction is Direction.MAXIMIZE else 1.0

    def key(number: int) -> tuple[bool, float, int]:
        value = values[number]
        return (not math.isfinite(value), sign * value if math.isfinite(value) else 0.0, number)

    return sorted(values, key=key)
