"""Records of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .states import VerdictKind
from .statistics import Chance, Estimate
from .verdicts import Verdict


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """One candidate on the test split. ``regret`` is how far it is behind the best found (negative: ahead)."""

    name: str
    title: str
    method: str
    params: dict[str, Any]
    parameters: int
    share_of_budget: float
    finished: int
    planned: int
    values: list[float]
    estimate: Estimate | None
    regret: Estimate | None
    flags: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    # That a fresh run of the best found is better than one of this candidate.
    chance: Chance | None = None
    validation: Estimate | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class PredictorResult:
    """The result of one predictor."""

    predictor: str
    choice: dict[str, Any]
    reason: str
    regret: Estimate | None
    rank_of_winner: int | None
    ranked: int
    spearman: float | None
    compared_trials: int
    verdict: str
    verdict_kind: VerdictKind
    seeds_to_settle: int | None


@dataclass(frozen=True, slots=True)
class Selection:
    """The winner's curse: the value for which a configuration was chosen, and what it reaches with fresh seeds.

    ``chosen`` is the value of the search trial, ``rechecked`` the mean with its ``runs - 1`` repetitions.
    ``optimism`` is how much better ``chosen`` is than the mean of the confirmation on the same split.
    """

    chosen: float
    runs: int
    rechecked: float
    validation: Estimate | None
    test: Estimate
    optimism: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Comparison:
    study_id: str
    study: str
    state: str
    phase: str
    metric: str
    direction: str
    split: str
    budget: int
    learning_rate_rule: str
    best_trial: dict[str, Any] | None
    candidates: list[CandidateResult]
    predictors: list[PredictorResult]
    notes: list[str]
    primary: str | None = None
    answer: str = ""
    selection: Selection | None = None
