"""The comparison on the wire."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ..domain.states import VerdictKind
from .wire import Wire


class EstimateOut(Wire):
    """A mean over seeds; spread and interval are null where there are too few seeds."""

    mean: float
    spread: float | None
    low: float | None
    high: float | None
    seeds: int
    confidence: float = Field(default=0.95, description="The interval's own: higher where several hold together.")


class VerdictOut(Wire):
    """The best found against a candidate, on the test split."""

    kind: VerdictKind
    sentence: str
    margin: float | None = Field(description="Differences within it count as practically equal; in the metric's unit.")
    seeds: int | None = Field(description="How many seeds in all would settle an undecided question, at 80 % power.")
    seconds: float | None = Field(description="What the missing seeds of both would take, summed over trials.")


class ChanceOut(Wire):
    """A probability with its 95 % interval."""

    value: float
    low: float | None
    high: float | None


class SelectionOut(Wire):
    """The value for which the winner was chosen, and what it reaches with fresh seeds."""

    chosen: float
    runs: int
    rechecked: float
    validation: EstimateOut | None
    test: EstimateOut
    optimism: float | None
    sentence: str


class CandidateOut(Wire):
    name: str
    title: str
    method: str
    params: dict[str, Any]
    parameters: int
    share_of_budget: float
    finished: int
    planned: int
    values: list[float]
    estimate: EstimateOut | None
    regret: EstimateOut | None
    flags: list[str]
    verdict: VerdictOut | None = Field(default=None, description="Null for the best found itself.")
    chance: ChanceOut | None = Field(
        default=None, description="That a fresh run of the best found is better than one of this candidate."
    )
    validation: EstimateOut | None = Field(default=None, description="The same runs on the validation split.")
    seconds: float | None = Field(default=None, description="Mean time of a run.")


class PredictorOut(Wire):
    predictor: str
    choice: dict[str, Any]
    reason: str
    regret: EstimateOut | None
    rank_of_winner: int | None
    ranked: int
    spearman: float | None
    compared_trials: int
    verdict: str
    verdict_kind: VerdictKind = VerdictKind.NONE
    seeds_to_settle: int | None = None


class ComparisonOut(Wire):
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
    candidates: list[CandidateOut]
    predictors: list[PredictorOut]
    notes: list[str]
    primary: str | None = Field(
        default=None, description="The candidate of the primary question; intervals of all others hold together."
    )
    answer: str = Field(default="", description="The answer to the primary question; empty while it is open.")
    selection: SelectionOut | None = None
