"""The interfaces of a search policy and a stop rule."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from pydantic import BaseModel

from ..domain.plan import Plan
from ..domain.ranges import STRICT
from ..domain.study_spec import StudySpec
from .history import History


class NoOptions(BaseModel):
    """Takes no options."""

    model_config = STRICT


@dataclass(frozen=True, slots=True)
class Proposal:
    """A configuration to try.

    ``params`` are the parameters as users see them, ``point`` their coordinates in the sampler's space. ``attrs`` is
    what the sampler stores on the trial for later asks. ``replicate`` counts earlier trials of the configuration.
    """

    params: dict[str, Any]
    point: dict[str, Any]
    attrs: dict[str, Any] | None = None
    replicate: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """A search problem: the study's spec, and the plan with the structures that the budget admits."""

    study_id: str
    spec: StudySpec
    plan: Plan


class SearchPolicy(Protocol):
    """A pure function of the history: the same history and number always give the same proposal."""

    def propose(self, problem: Problem, history: History, number: int) -> Proposal | None:
        """The configuration for trial ``number``; ``None`` if nothing in the space is left to try."""
        ...


class Verdict(Enum):
    """What becomes of a running trial after an evaluation that is not its last."""

    CONTINUE = auto()
    STOP = auto()
    WAIT = auto()  # it stops with a checkpoint, and may be continued later


class StopRule(Protocol):
    """Judges running trials; a pure function of the history."""

    def judge(self, problem: Problem, history: History, number: int, evaluations: int) -> Verdict:
        """The verdict on trial ``number`` of the history after its first ``evaluations`` evaluations."""
        ...

    def promotions(self, problem: Problem, history: History) -> list[int]:
        """The waiting trials that are to be continued now, best first."""
        ...
