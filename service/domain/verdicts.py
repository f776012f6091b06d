"""Verdicts: what an interval of a difference says beside a margin that matters, and how many seeds would settle it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

from .metrics import IN_POINTS
from .states import VerdictKind
from .statistics import FEWEST_SEEDS, Estimate
from .study_spec import StudySpec

# The probability with which the stated number of seeds settles a question, if what was seen is the truth.
POWER = 0.8
# More seeds than that settle nothing in practice.
MOST_SEEDS = 1000


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict with its sentence. ``seeds`` is how many in all would settle an undecided question, if any number does.

    ``seconds`` is what the missing ones would take, summed over trials.
    """

    kind: VerdictKind
    sentence: str
    margin: float | None = None
    seeds: int | None = None
    seconds: float | None = None


def margin_of(spec: StudySpec, best: float | None) -> float:
    """A study's margin in its metric's own unit: half a point, or 1 % of the best found, unless it names one."""
    given = spec.compare.margin
    if spec.objective.metric in IN_POINTS:
        return (0.5 if given is None else given) / 100
    return abs(best or 0.0) / 100 if given is None else given


def judge(difference: Estimate, margin: float) -> VerdictKind:
    """The verdict on the mean of (best found - other), signed so that positive favours the search.

    An interval within ``[-margin, margin]`` means practically equal, even if it excludes 0. As a test of equivalence
    by a two-sided 95 % interval it errs in at most 2.5 % of cases.
    """
    if difference.seeds < FEWEST_SEEDS or difference.low is None or difference.high is None:
        return VerdictKind.TOO_FEW_SEEDS
    if -margin <= difference.low and difference.high <= margin:
        return VerdictKind.EQUAL
    if difference.low > 0:
        return VerdictKind.BETTER
    return VerdictKind.WORSE if difference.high < 0 else VerdictKind.UNDECIDED


def seeds_to_settle(difference: Estimate, margin: float) -> int | None:
    """How many seeds in all would settle the question with probability ``POWER``; ``None`` if not even 1000 would.

    Takes the mean d and the spread s over seeds that were seen as true. The interval of n seeds has the half width
    ``h(n) = sqrt((t_{n-1} s / sqrt n)^2 + (1.96 e)^2)``, and its middle the standard deviation
    ``m(n) = sqrt(s^2 / n + e^2)``, where e, the part due to the draw of the test examples, does not shrink with seeds.
    The interval excludes 0 with probability p once ``|d| >= h(n) + z_p m(n)``, and lies within the margin once
    ``margin - |d| >= h(n) + z_q m(n)`` with ``q = (1 + p) / 2``, as it may leave it on either side.
    """
    if difference.spread is None or difference.low is None or difference.high is None:
        return None
    mean, spread, half = abs(difference.mean), difference.spread, (difference.high - difference.low) / 2
    confidence = difference.confidence
    normal = float(stats.norm.ppf(0.5 + confidence / 2))
    examples = math.sqrt(max(0.0, half**2 - _seed_part(spread, difference.seeds, confidence) ** 2)) / normal
    ahead, within = float(stats.norm.ppf(POWER)), float(stats.norm.ppf((1 + POWER) / 2))
    for n in range(max(FEWEST_SEEDS, difference.seeds + 1), MOST_SEEDS + 1):
        width = math.hypot(_seed_part(spread, n, confidence), normal * examples)
        middle = math.hypot(spread / math.sqrt(n), examples)
        if mean >= width + ahead * middle or margin - mean >= width + within * middle:
            return n
    return None


def _seed_part(spread: float, seeds: int, confidence: float) -> float:
    return float(stats.t.ppf(0.5 + confidence / 2, seeds - 1)) * spread / math.sqrt(seeds)
