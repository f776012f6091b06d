"""Linked studies as one answer: at which budget searching pays, on which models and tasks, or whether at all."""

from __future__ import annotations

from collections.abc import Sequence

from ..context.context import Context
from ..db.studies import Studies
from ..db.trial_columns import TrialColumns
from ..db.trials import Trials
from ..domain.group_results import Group, Point
from ..domain.group_spec import Axis, Grouping
from ..domain.records import Study
from ..domain.states import TrialPhase, VerdictKind
from ..domain.statistics import Estimate, estimate
from ..domain.verdicts import judge, margin_of
from ..errors import Conflict
from ..studies.differences import adjusted, regret
from .comparison import compare, confidence_of
from .sentences import Told

GUIDELINE = "guideline"


def get_group(ctx: Context, group_id: str, team_id: str | None) -> Group:
    """The group as of now.

    Raises:
        NotFound: there is no such group in this team.
    """
    with ctx.db.read() as session:
        studies = Studies(session).of_group(group_id, team_id)
    # As many as were created: that one is deleted makes the others' intervals no narrower.
    points = [_point(ctx, s, s.group.of if s.group is not None else len(studies)) for s in studies]
    place = studies[0].group
    assert place is not None, "it has a group"
    reason = incomparable(studies)
    gain = _procedure(points) if place.axis is Axis.REPEATS else None
    objective = studies[0].spec.objective
    return Group(
        id=group_id,
        name=place.name,
        axis=place.axis,
        metric=objective.metric,
        direction=objective.direction,
        points=points,
        reason=reason,
        gain=gain,
        pays_from=_pays_from(points) if place.axis is Axis.BUDGETS else None,
        sentences=_sentences(place, points, gain, reason),
        made_at=ctx.clock(),
    )


def _point(ctx: Context, study: Study, count: int) -> Point:
    comparison = compare(ctx, study.id, None)
    label = study.group.label if study.group is not None else study.name
    asked = next((c for c in study.candidates if c.name == GUIDELINE), None)
    if asked is None:
        return Point(study, label, comparison, None, None)
    with ctx.db.read() as session:
        confirmed = Trials(session).of_study(study.id, TrialPhase.CONFIRMATION)
        scores = TrialColumns(session).scores(study.id)
    confirmed = [t for t in confirmed if t.candidate is not None]
    own = confidence_of(study, asked.name, confirmed)
    gain = regret(study, asked, confirmed, scores, adjusted(own, count))
    best = comparison.candidates[0].estimate
    kind = None if gain is None else judge(gain, margin_of(study.spec, best.mean if best is not None else None))
    if asked.runs_as == study.candidates[0].name:
        kind = VerdictKind.SAME
    return Point(study, label, comparison, gain, kind)


def _procedure(points: Sequence[Point]) -> Estimate | None:
    """The gain of searching over repeated searches: each is one draw."""
    gains = []
    for point in points:
        if point.kind is VerdictKind.SAME:
            gains.append(0.0)
        elif point.gain is not None:
            gains.append(point.gain.mean)
    return estimate(gains) if gains else None


def _pays_from(points: Sequence[Point]) -> str | None:
    """The smallest budget at which the interval excludes that searching does not pay."""
    order = sorted(points, key=lambda p: p.study.plan.max_parameters)
    return next((p.label for p in order if p.kind is VerdictKind.BETTER), None)


def incomparable(studies: Sequence[Study]) -> str | None:
    """Why results of studies cannot be set side by side; ``None`` if they can.

    Data that no trial has read yet is not known.
    """
    first = studies[0]
    for study in studies[1:]:
        names = f"{first.name!r} and {study.name!r}"
        ours, theirs = first.spec.objective, study.spec.objective
        if ours.metric != theirs.metric:
            return f"{names} have different metrics: {ours.metric} and {theirs.metric}"
        if ours.direction != theirs.direction:
            return f"{names} have different directions: {ours.direction} and {theirs.direction}"
        if first.spec.task.kind != study.spec.task.kind:
            return f"{names} have different tasks: {first.spec.task.kind} and {study.spec.task.kind}"
    known = [study for study in studies if study.inputs is not None]
    for study in known[1:]:
        if _test_of(known[0]) != _test_of(study):
            return f"{known[0].name!r} and {study.name!r} have different test splits"
    return None


def _test_of(study: Study) -> tuple[object, ...] | None:
    """What tells one test split from another."""
    split = None if study.inputs is None else study.inputs.splits.get("test")
    if split is None:
        return None
    return split.origin, split.used, tuple(file.sha256 for file in split.files)


def require_comparable(ctx: Context, study_ids: Sequence[str], team_id: str | None) -> None:
    """Check that studies can be set side by side.

    Raises:
        NotFound: one does not exist in this team.
        Conflict: they cannot; says why.
    """
    with ctx.db.read() as session:
        studies = [Studies(session).get(study_id, team_id) for study_id in dict.fromkeys(study_ids)]
    if reason := incomparable(studies):
        raise Conflict(f"{reason}; compare each by itself")


def _sentences(place: Grouping, points: Sequence[Point], gain: Estimate | None, reason: str | None) -> list[str]:
    told = Told.of(points[0].study)
    if not all(GUIDELINE in p.study.spec.compare.predictors and p.study.spec.compare.first_seeds for p in points):
        return ["Nothing is said about searching: not every study confirms the guideline (compare.predictors, seeds)."]
    open_ = [p for p in points if p.kind in (None, VerdictKind.TOO_FEW_SEEDS)]
    judged = [p for p in points if p not in open_]
    found = []
    if place.axis is Axis.REPEATS:
        found += _of_repeats(told, gain, len(points))
    elif judged:
        found += _of_budgets(told, judged) if place.axis is Axis.BUDGETS else _of_kinds(told, judged)
        every = "both studies" if place.of == 2 else f"all {place.of} studies"
        found.append(f"The intervals hold for {every} together (Bonferroni).")
    if open_:
        found.append(f"{len(open_)} of {len(points)} studies have no verdict yet: {', '.join(p.label for p in open_)}.")
    if reason is not None:
        found.append(f"The studies are not set side by side: {reason}.")
    return found


def _interval(told: Told, gain: Estimate) -> str:
    if gain.low is None or gain.high is None:
        return told.difference(gain.mean)
    return f"{told.difference(gain.mean)}, interval {told.bare(gain.low)} to {told.bare(gain.high)}"


def _of_repeats(told: Told, gain: Estimate | None, count: int) -> list[str]:
    if gain is None:
        return []
    if gain.low is None or gain.high is None:
        seen = f"{gain.seeds} of {count} searches are compared"
        return [f"{seen}: {told.difference(gain.mean)} against the guideline; it takes three to judge."]
    over = f"over {gain.seeds} searches with different seeds"
    numbers = f"{told.difference(gain.mean)} against the guideline, 95 % interval "
    numbers += f"{told.bare(gain.low)} to {told.bare(gain.high)}"
    if gain.low > 0:
        return [f"Searching pays as a procedure: {numbers} {over}."]
    if gain.high < 0:
        return [f"As a procedure, searching does worse than the guideline: {numbers} {over}."]
    return [f"Whether searching pays as a procedure is open: {numbers} {over}."]


def _of_budgets(told: Told, judged: Sequence[Point]) -> list[str]:
    order = sorted(judged, key=lambda p: p.study.plan.max_parameters)
    paying = [p for p in order if p.kind is VerdictKind.BETTER]
    if not paying:
        return [f"Searching beat the guideline at none of the {len(order)} budgets that have a verdict."]
    first = paying[0]
    assert first.gain is not None, "it was judged by it"
    size = f"{first.study.plan.max_parameters:,} parameters"
    smallest = f"The smallest budget at which searching beat the guideline is {first.label} ({size})"
    found = [f"{smallest}: {_interval(told, first.gain)}."]
    others = [p.label for p in order if p.kind is not VerdictKind.BETTER]
    if others:
        found.append(f"It did not at {', '.join(others)}.")
    return found


def _of_kinds(told: Told, judged: Sequence[Point]) -> list[str]:
    paying = [p for p in judged if p.kind is VerdictKind.BETTER]
    found = [f"Searching beat the guideline in {len(paying)} of {len(judged)} studies."]
    return found + [f"{p.label}: {_interval(Told.of(p.study), p.gain)}." for p in paying if p.gain is not None]
