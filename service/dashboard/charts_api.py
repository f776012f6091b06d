"""Charts by REST."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from ..api.dependencies import ContextDep, Id, Reader, problems
from ..context.context import Context
from ..db.predictions import Predictions
from ..db.studies import Studies
from ..db.trial_columns import TrialColumns
from ..db.trials import Trials
from ..domain.records import Study
from ..domain.states import TrialState
from ..results.comparison import compare, searched
from ..results.export import spreadsheet_cell
from ..results.reports import current_effects
from ..results.trial_filter import LONGEST
from ..results.trial_rows import rows_of
from ..studies import trials
from . import charts, parameter_charts, search_charts

router = APIRouter(tags=["studies"])


class ChartKind(StrEnum):
    """The charts of a study."""

    HISTORY = "history"
    COMPARISON = "comparison"
    DIFFERENCES = "differences"
    CURVES = "curves"
    PARALLEL = "parallel"
    SLICE = "slice"
    CONTOUR = "contour"
    IMPORTANCES = "importances"
    EFFECTS = "effects"
    PARETO = "pareto"
    PREDICTED = "predicted"
    REGRET = "regret"
    DISTRIBUTION = "distribution"
    TIMELINE = "timeline"


Name = Annotated[str | None, Query(max_length=100)]


@router.get("/studies/{study_id}/charts/{kind}", response_model=dict[str, Any], responses=problems(404, 422))
def chart(
    ctx: ContextDep,
    principal: Reader,
    study_id: Id,
    kind: ChartKind,
    where: Annotated[
        str | None,
        Query(max_length=LONGEST, description="Which trials, such as: accuracy > 0.9 and state = completed"),
    ] = None,
    x: Annotated[Name, Query(description="The parameter of slice, contour and effects.")] = None,
    y: Annotated[Name, Query(description="The second parameter of contour.")] = None,
    predictor: Annotated[Name, Query(description="The predictor of predicted; by default the first.")] = None,
    form: Annotated[
        Literal["plotly", "csv"], Query(alias="format", description="A Plotly figure, or its points as CSV.")
    ] = "plotly",
) -> Response:
    """A chart of a study as a Plotly figure, or the points that it shows as CSV.

    ``where`` holds for the charts of the search; ``comparison``, ``differences``, ``importances`` and ``effects`` show
    the whole study.
    """
    with ctx.db.read() as session:
        study = Studies(session).get(study_id, principal.scope)
    key = ("chart", kind, study_id, study.version, where, x, y, predictor)
    figure = ctx.recent.get(key, lambda: _DRAWN[kind](_Asked(ctx, study, where, x, y, predictor)))
    if form == "csv":
        return PlainTextResponse(as_csv(figure), media_type="text/csv")
    return JSONResponse(figure)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a chart is asked for."""

    ctx: Context
    study: Study
    where: str | None
    x: str | None
    y: str | None
    predictor: str | None

    @property
    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.ctx, self.study).where(self.where)


def _history(a: _Asked) -> charts.Figure:
    with a.ctx.db.read() as session:
        named = TrialColumns(session).search_candidates(a.study.id)
    shown = searched(a.ctx, a.study.id)
    own = next((t for t in shown if named.get(t.number) == "guideline" and t.state is TrialState.COMPLETED), None)
    value = None if own is None else own.metrics.get(a.study.spec.objective.metric)
    if a.where and a.where.strip():
        numbers = {row["number"] for row in a.rows}
        shown = [t for t in shown if t.number in numbers]
    return charts.history(a.study, shown, value)


def _confirmed(draw: Callable[..., charts.Figure]) -> Callable[[_Asked], charts.Figure]:
    def drawn(a: _Asked) -> charts.Figure:
        waiting = "" if a.study.spec.compare.first_seeds else "nothing is confirmed: compare.seeds is 0"
        return draw(compare(a.ctx, a.study.id, None), waiting)

    return drawn


def _pareto(a: _Asked) -> charts.Figure:
    with a.ctx.db.read() as session:
        parameters = TrialColumns(session).parameters(a.study.id)
    return search_charts.pareto(a.study, a.rows, parameters)


def _predicted(a: _Asked) -> charts.Figure:
    with a.ctx.db.read() as session:
        rankings = Predictions(session).of_study(a.study.id)
    if not rankings:
        return search_charts.nothing("No predictor has ranked anything yet.")
    name = a.predictor if a.predictor in rankings else next(iter(rankings))
    scores = {p.structure: p.score for p in rankings[name]}
    return search_charts.predicted(a.study, a.rows, scores, name)


def _timeline(a: _Asked) -> charts.Figure:
    numbers = [row["number"] for row in a.rows if row["state"] not in (TrialState.QUEUED, TrialState.RUNNING)]
    with a.ctx.db.read() as session:
        found = Trials(session).numbered_all(a.study.id, numbers[-500:])
    return search_charts.timeline(sorted(found, key=lambda t: t.number))


_DRAWN: dict[ChartKind, Callable[[_Asked], charts.Figure]] = {
    ChartKind.HISTORY: _history,
    ChartKind.COMPARISON: _confirmed(charts.comparison),
    ChartKind.DIFFERENCES: _confirmed(charts.differences),
    ChartKind.CURVES: lambda a: search_charts.evaluations(a.study, a.rows),
    ChartKind.PARALLEL: lambda a: parameter_charts.parallel(a.study, a.rows),
    ChartKind.SLICE: lambda a: parameter_charts.slice_of(a.study, a.rows, a.x),
    ChartKind.CONTOUR: lambda a: parameter_charts.contour(a.study, a.rows, a.x, a.y),
    ChartKind.IMPORTANCES: lambda a: parameter_charts.importances(current_effects(a.ctx, a.study)),
    ChartKind.EFFECTS: lambda a: parameter_charts.effect(a.study, current_effects(a.ctx, a.study), a.x),
    ChartKind.PARETO: _pareto,
    ChartKind.PREDICTED: _predicted,
    ChartKind.REGRET: lambda a: search_charts.regret(a.study, a.rows),
    ChartKind.DISTRIBUTION: lambda a: search_charts.distribution(a.study, a.rows),
    ChartKind.TIMELINE: _timeline,
}


def as_csv(figure: charts.Figure) -> str:
    """The points of a figure: a line each, with the name of its series."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    dimensions = figure["layout"].get("meta", {}).get("dimensions")
    if dimensions:
        return _parallel_csv(figure, dimensions)
    titles = [figure["layout"][axis]["title"]["text"] or axis[0] for axis in ("xaxis", "yaxis")]
    writer.writerow(["series", *map(spreadsheet_cell, titles), "note"])
    for series in figure["data"]:
        if series.get("type") == "contour":
            _contour_csv(writer, series)
            continue
        xs, ys = series.get("x", []), series.get("y", [])
        notes = series.get("text") or [""] * len(xs)
        for x, y, note in zip(xs, ys, notes, strict=False):
            if x is not None:
                writer.writerow([spreadsheet_cell(v) for v in (series.get("name", ""), x, y, note)])
    return buffer.getvalue()


def _contour_csv(writer: Any, field: dict[str, Any]) -> None:
    """The mean of each cell that has one."""
    for y, means in zip(field["y"], field["z"], strict=True):
        for x, mean in zip(field["x"], means, strict=True):
            if mean is not None:
                writer.writerow(["mean", x, y, mean])


def _parallel_csv(figure: charts.Figure, dimensions: list[dict[str, Any]]) -> str:
    """The lines of parallel axes: a line each, with the value on every axis."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["trial", *(spreadsheet_cell(d["name"]) for d in dimensions)])
    width = len(dimensions) + 1
    for series in figure["data"]:
        for start in range(0, len(series["x"]), width):
            places = series["y"][start : start + width - 1]
            values = [_at(d, place) for d, place in zip(dimensions, places, strict=True)]
            writer.writerow([series["customdata"][start], *map(spreadsheet_cell, values)])
    return buffer.getvalue()


def _at(dimension: dict[str, Any], place: float | None) -> Any:
    """The value at a place of a parallel axis, to five digits."""
    if place is None:
        return ""
    if "words" in dimension:
        return dimension["words"][round(place * max(1, len(dimension["words"]) - 1))]
    moved = dimension["low"] + place * (dimension["high"] - dimension["low"])
    return float(f"{10**moved if dimension['log'] else moved:.5g}")


@router.get("/trials/{trial_id}/chart", tags=["trials"], responses=problems(404))
def trial_chart(ctx: ContextDep, principal: Reader, trial_id: Id) -> dict[str, Any]:
    """A trial's evaluations beside the median of the others, as a Plotly figure."""
    trial = trials.get_trial(ctx, trial_id, principal.scope)
    with ctx.db.read() as session:
        study = Studies(session).get(trial.study_id, principal.scope)
    return charts.curve(study, trial, searched(ctx, trial.study_id))
