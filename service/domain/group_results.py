"""The result of linked studies."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from .comparison import CandidateResult, Comparison
from .group_spec import Axis
from .records import Study
from .states import STUDY_ENDED, VerdictKind
from .statistics import Estimate


@dataclass(frozen=True, slots=True)
class Point:
    """One study of a group. ``gain`` is how far the guideline is behind the best found; it holds with all others'."""

    study: Study
    label: str
    comparison: Comparison
    gain: Estimate | None
    kind: VerdictKind | None

    def row(self, name: str) -> CandidateResult | None:
        """A candidate's result."""
        return next((c for c in self.comparison.candidates if c.name == name), None)


@dataclass(frozen=True, slots=True)
class Group:
    """Linked studies. ``gain`` is that of searching as a procedure, where the search was repeated."""

    id: str
    name: str
    axis: Axis
    metric: str
    direction: str
    points: list[Point]
    reason: str | None
    gain: Estimate | None
    pays_from: str | None
    sentences: list[str]
    made_at: datetime

    @property
    def ended(self) -> int:
        """How many of the studies have ended."""
        return sum(point.study.state in STUDY_ENDED for point in self.points)
