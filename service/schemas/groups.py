"""Groups of studies, and the record of predictors, on the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ..domain.group_spec import Axis
from ..domain.states import StudyState, VerdictKind
from .comparison import EstimateOut
from .studies import StudyCreated
from .wire import Wire

if TYPE_CHECKING:  # it imports scipy, and clients import this module
    from ..domain.group_results import Group, Point


class GroupCreated(Wire):
    """A new group with its studies, in their order."""

    id: str
    name: str
    axis: Axis
    studies: list[StudyCreated]


class GroupRow(Wire):
    """A candidate of one study of a group, on the test split."""

    name: str
    title: str
    parameters: int
    estimate: EstimateOut | None


class GroupPoint(Wire):
    """One study of a group."""

    study_id: str
    name: str
    label: str
    state: StudyState
    budget: int = Field(description="In adapter parameters.")
    candidates: list[GroupRow]
    gain: EstimateOut | None = Field(
        description="How far the guideline is behind the best found, in the metric's unit; all intervals hold together."
    )
    verdict: VerdictKind | None


class GroupOut(Wire):
    """Linked studies as one answer."""

    id: str
    name: str
    axis: Axis
    metric: str
    direction: str
    studies: list[GroupPoint]
    reason: str | None = Field(description="Why the studies cannot be set side by side; null if they can.")
    gain: EstimateOut | None = Field(description="The gain of searching as a procedure, over repeated searches.")
    pays_from: str | None = Field(description="The label of the smallest budget at which searching beat the guideline.")
    sentences: list[str]

    @classmethod
    def of(cls, group: Group) -> GroupOut:
        """From the result."""
        return cls(
            id=group.id,
            name=group.name,
            axis=group.axis,
            metric=group.metric,
            direction=group.direction,
            studies=[_point(point) for point in group.points],
            reason=group.reason,
            gain=None if group.gain is None else EstimateOut.model_validate(group.gain),
            pays_from=group.pays_from,
            sentences=group.sentences,
        )


def _point(point: Point) -> GroupPoint:
    return GroupPoint(
        study_id=point.study.id,
        name=point.study.name,
        label=point.label,
        state=point.study.state,
        budget=point.study.plan.max_parameters,
        candidates=[GroupRow.model_validate(c) for c in point.comparison.candidates],
        gain=None if point.gain is None else EstimateOut.model_validate(point.gain),
        verdict=point.kind,
    )


class PooledOut(Wire):
    """A mean over studies; interval and spread are null for fewer than three."""

    studies: int
    mean: float
    low: float | None
    high: float | None
    spread: float | None = Field(description="The standard deviation of the true values among studies.")


class RecordOut(Wire):
    """A predictor's record over confirmed studies with one metric.

    ``better``: its choice beat what the search found. ``same``: the search found nothing else. ``equal``: practically
    equal. ``worse``: searching won. ``top_choice``: the winner was first in its ranking.
    """

    predictor: str
    metric: str
    studies: int
    better: int
    same: int
    equal: int
    worse: int
    undecided: int
    top_choice: int
    regret: PooledOut | None = Field(description="How far its choices are behind the best found, by random effects.")


class RecordsOut(Wire):
    items: list[RecordOut]
