"""What makes the comparison of two candidates unfair: sizes, steps, data, hardware, runs that were cut or repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..domain.records import Candidate, Study, Trial
from ..domain.states import TrialState

UNUSABLE = frozenset({TrialState.FAILED, TrialState.INFEASIBLE, TrialState.CANCELLED})
# Sizes that differ by no more count as equal.
_SAME_SIZE = 0.02


def flags_of(
    study: Study, candidate: Candidate, mine: Mapping[int, Trial], best: Mapping[int, Trial], confirmed: Sequence[Trial]
) -> list[str]:
    """The flags of a candidate, as sentences without a subject."""
    flags = []
    share = candidate.parameters / study.plan.max_parameters
    if share < study.plan.min_fill:
        flags.append(f"uses only {share:.0%} of the budget (min_fill is {study.plan.min_fill:.0%})")
    if share > 1:
        flags.append(f"is over the budget ({share:.0%})")
    winner = study.candidates[0]
    ratio = candidate.parameters / winner.parameters
    if abs(ratio - 1) > _SAME_SIZE and study.plan.min_fill <= share <= 1:
        size = f"{100 * abs(ratio - 1):.0f} % {'more' if ratio > 1 else 'fewer'} parameters than the best found"
        flags.append(f"has {size}")
    theirs, ours = candidate.params.get("target_modules"), winner.params.get("target_modules")
    if theirs != ours:
        flags.append(f"adapts other modules: {theirs} here, {ours} there")
    runs = [t for t in confirmed if t.candidate == candidate.runs_as]
    failed = sum(t.state in UNUSABLE for t in runs)
    if failed:
        flags.append(f"{failed} of {len(runs)} seeds did not finish")
    if candidate.runs_as == candidate.name:
        again = sum(t.attempts > 1 for t in mine.values())
        if again:
            flags.append(f"{again} of {len(mine)} runs took more than one attempt")
        if candidate.name != winner.name:
            flags += _differences(mine, best)
    else:
        flags.append(f"identical with {candidate.runs_as!r}, whose runs stand for both")
    return flags


def _differences(mine: Mapping[int, Trial], best: Mapping[int, Trial]) -> list[str]:
    """What differs between runs with the same seed that should not."""
    shared = sorted(mine.keys() & best.keys())
    flags = []
    for what, read in _READ.items():
        pairs = [(read(mine[s].resources), read(best[s].resources)) for s in shared]
        differing = [(a, b) for a, b in pairs if a is not None and b is not None and a != b]
        if differing:
            theirs, ours = differing[0]
            flags.append(f"{what} differ in {len(differing)} of {len(shared)} seeds: {theirs} here, {ours} there")
    return flags


def _field(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda resources: resources.get(name)


_READ: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "devices": _field("device"),
    "training steps": _field("steps"),
}
