"""What readers do with several trials at once: compare them, stop or retry them, take them away as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Form, Path, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse

from ..api.dependencies import ContextDep
from ..context.context import Context
from ..db.trials import Trials
from ..domain.comparison import Comparison
from ..domain.records import Principal, Study, Trial
from ..errors import Conflict, Fault, InvalidRequest, NotFound, Unauthorized
from ..results.comparison import compare
from ..results.export import spreadsheet_cell
from ..results.trial_rows import rows_of
from ..studies import studies, trials
from . import charts
from .pages import headline, study_with
from .shell import principal_of, require_member, require_same_origin, templates, to_login
from .trial_table import Query as TableQuery
from .trial_table import cell, columns_of, fitting_rows

router = APIRouter(include_in_schema=False)
MOST_COMPARED = 20
_PAGE = 500
Ids = Annotated[list[str], Query(max_length=200)]


class Verb(StrEnum):
    """What is done to the selected trials."""

    STOP = "stop"
    RETRY = "retry"


@router.get("/studies/{study_id}/trials.csv")
def trials_csv(request: Request, ctx: ContextDep, study_id: str) -> Response:
    """The trials and columns of the table as CSV, all pages of it."""
    principal = principal_of(request, ctx)
    if principal is None:
        raise Unauthorized("log in again")
    study, _ = studies.get_study(ctx, study_id, principal.scope)
    query = TableQuery.of(dict(request.query_params))
    rows = rows_of(ctx, study)
    numbers = [row["number"] for row in fitting_rows(study, rows, query)]
    columns, _ = columns_of(study, query, rows)
    name = {"Content-Disposition": f'attachment; filename="trials-{study_id}.csv"'}
    return StreamingResponse(_csv(ctx, study_id, numbers, columns), media_type="text/csv", headers=name)


def _csv(ctx: Context, study_id: str, numbers: list[int], columns: list[str]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["id", *map(spreadsheet_cell, columns)])
    for start in range(0, len(numbers), _PAGE):
        wanted = numbers[start : start + _PAGE]
        with ctx.db.read() as session:
            found = {t.number: t for t in Trials(session).numbered_all(study_id, wanted)}
        for trial in (found[n] for n in wanted if n in found):
            values = [trial.id, *(cell(trial, column) for column in columns)]
            writer.writerow(["" if v is None else spreadsheet_cell(v) for v in values])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


@router.get("/studies/{study_id}/trials/{number}")
def numbered_trial(
    request: Request, ctx: ContextDep, study_id: str, number: Annotated[int, Path(ge=-1, le=2**31 - 1)]
) -> Response:
    """The page of a trial by its number: where a click on a point of a chart leads."""
    principal = principal_of(request, ctx)
    if principal is None:
        return to_login()
    studies.get_study(ctx, study_id, principal.scope)
    with ctx.db.read() as session:
        trial = Trials(session).numbered(study_id, number)
    if trial is None:
        raise NotFound(f"this study has no trial {number}")
    return RedirectResponse(f"/trials/{trial.id}", status_code=303)


@router.post("/studies/{study_id}/trials/{verb}")
def steer_trials(
    request: Request,
    ctx: ContextDep,
    study_id: str,
    verb: Verb,
    trial: Annotated[list[str] | None, Form(max_length=100)] = None,
) -> Response:
    """Stop or retry the selected trials. What cannot be done to some of them is said on the study's page."""
    require_same_origin(request)
    principal = require_member(request, ctx, f"{verb} trials")
    refused = []
    for one in trial or []:
        found = trials.get_trial(ctx, one, principal.scope)
        if found.study_id != study_id:
            raise NotFound(f"this study has no trial {one}")
        try:
            (trials.stop_trial if verb is Verb.STOP else trials.retry_trial)(ctx, principal, one)
        except (Conflict, InvalidRequest) as error:
            refused.append(f"trial {found.number}: {error.detail}")
    if not trial:
        return study_with(request, ctx, principal, study_id, "Select trials in the table first.", 422)
    if refused:
        return study_with(request, ctx, principal, study_id, "; ".join(refused), 409)
    return RedirectResponse(f"/studies/{study_id}#trials-title", status_code=303)


@dataclass(frozen=True, slots=True)
class Line:
    """Something that is compared: its name, a value for each trial or study, and whether they differ."""

    name: str
    values: list[Any]

    @property
    def differs(self) -> bool:
        """Whether not all values are the same."""
        return len({str(v) for v in self.values}) > 1


@router.get("/compare")
def compare_page(request: Request, ctx: ContextDep, trial: Ids = [], study: Ids = []) -> Response:  # noqa: B006
    """Trials or studies side by side, what differs first."""
    principal = principal_of(request, ctx)
    if principal is None:
        return to_login()
    shown: dict[str, Any] = {"principal": principal, "place": "studies", "trials": [], "studies": [], "said": ""}
    if max(len(study), len(trial)) > MOST_COMPARED:
        study, trial = [], []
    if study:
        shown |= _studies_shown(ctx, principal, study)
    elif trial:
        shown |= _trials_shown(ctx, principal, trial)
    if len(shown["trials"]) + len(shown["studies"]) < 2:
        shown["said"] = f"Select 2 to {MOST_COMPARED} trials of a study, or studies, and compare them here."
    return templates.TemplateResponse(request, "compare.html", shown)


def _trials_shown(ctx: Context, principal: Principal, ids: list[str]) -> dict[str, Any]:
    found = [trials.get_trial(ctx, one, principal.scope) for one in dict.fromkeys(ids)]
    found.sort(key=lambda t: (t.study_id, t.number))
    home = {t.study_id: studies.get_study(ctx, t.study_id, principal.scope)[0] for t in found}
    return {
        "trials": found,
        "studies_of": home,
        "lines": trial_lines(found),
        "address": "&".join(f"trial={t.id}" for t in found),
        "one_study": len(home) == 1,
    }


def trial_lines(found: list[Trial]) -> list[tuple[str, list[Line]]]:
    """What trials have, in sections; in each, what differs comes first."""
    params = dict.fromkeys(name for t in found for name in t.params)
    metrics = dict.fromkeys(name for t in found for name in t.metrics)
    resources = [
        n
        for n in ("seconds", "gpu_seconds", "peak_memory_bytes", "device", "runner")
        if any(n in t.resources for t in found)
    ]
    sections = [
        ("Parameters", [Line(n, [t.params.get(n) for t in found]) for n in params]),
        ("Metrics", [Line(n, [t.metrics.get(n) for t in found]) for n in metrics]),
        (
            "Trial",
            [
                Line("state", [t.state for t in found]),
                Line("phase", [t.candidate or t.phase for t in found]),
                Line("method", [t.method for t in found]),
                Line("adapter parameters", [t.parameters for t in found]),
                Line("training seed", [t.seed for t in found]),
                Line("attempts", [t.attempts for t in found]),
                *(Line(n, [t.resources.get(n) for t in found]) for n in resources),
            ],
        ),
    ]
    return [(title, sorted(lines, key=lambda line: not line.differs)) for title, lines in sections]


@router.get("/compare/chart")
def compare_chart(request: Request, ctx: ContextDep, trial: Ids) -> JSONResponse:
    """The evaluations of trials, one line each, as a Plotly figure."""
    principal = principal_of(request, ctx)
    if principal is None:
        raise Unauthorized("log in again")
    found = [trials.get_trial(ctx, one, principal.scope) for one in list(dict.fromkeys(trial))[:MOST_COMPARED]]
    if not found:
        raise InvalidRequest("no trial was named", [Fault("#/trial", "name 1 to 20 trials")])
    study, _ = studies.get_study(ctx, found[0].study_id, principal.scope)
    return JSONResponse(charts.curves(study, found))


def _studies_shown(ctx: Context, principal: Principal, ids: list[str]) -> dict[str, Any]:
    found = [studies.get_study(ctx, one, principal.scope)[0] for one in dict.fromkeys(ids)]
    compared = [compare(ctx, s.id, principal.scope) for s in found]
    return {
        "studies": list(zip(found, compared, map(headline, compared), strict=True)),
        "lines": study_lines(found, compared),
    }


def study_lines(found: list[Study], compared: list[Comparison]) -> list[tuple[str, list[Line]]]:
    """What studies were asked and what they found, in sections; in each, what differs comes first."""
    flat = [_flat(s.spec.model_dump(mode="json", exclude={"name"})) for s in found]
    names = dict.fromkeys(name for one in flat for name in one)
    asked = [Line(n, [one.get(n) for one in flat]) for n in names]
    result = [
        Line("budget, parameters", [s.plan.max_parameters for s in found]),
        Line("best found on validation", [c.best_trial["mean"] if c.best_trial else None for c in compared]),
        Line("best found, trial", [c.best_trial["number"] if c.best_trial else None for c in compared]),
        Line("answer", [c.answer for c in compared]),
    ]
    return [("Result", result), ("What differs in the study files", [line for line in asked if line.differs])]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by dotted name."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    return found
