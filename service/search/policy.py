"""What a search policy and a stop rule promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..domain.plan import Plan
from ..domain.records import Trial
from ..domain.study_spec import StudySpec


@dataclass(frozen=True, slots=True)
class Proposal:
    """A configuration to try: the parameters as users see them, and the sampler's own coordinates of it."""

    params: dict[str, Any]
    point: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """A search problem: what is asked, and what the budget admits."""

    study_id: str
    spec: StudySpec
    plan: Plan


class SearchPolicy(Protocol):
    """A pure function of the history: the same history and number always give the same proposal."""

    def propose(self, problem: Problem, history: Sequence[Trial], number: int) -> Proposal:
        """The configuration for trial ``number``. ``history`` holds the search trials so far, in any order."""
        ...


class StopRule(Protocol):
    """Says whether a running trial should end early; a pure function of the history."""

    def should_stop(self, problem: Problem, history: Sequence[Trial], trial: Trial) -> bool:
        """Whether ``trial`` (which is in ``history``) should stop after its latest evaluation."""
        ...
