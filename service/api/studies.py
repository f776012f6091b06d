"""Studies, their predictions and their comparison."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Response
from fastapi.responses import FileResponse, StreamingResponse
from starlette.background import BackgroundTask

from ..domain.records import Study, TrialCounts
from ..domain.states import StudyState
from ..domain.study_spec import StudyChanges
from ..errors import Changed
from ..results import comparison, export, groups, optuna_export, reading
from ..schemas.comparison import ComparisonOut
from ..schemas.studies import (
    BudgetOut,
    ParetoOut,
    PredictionRequest,
    PredictionsOut,
    RankingOut,
    StudyCreated,
    StudyOut,
    rankings,
)
from ..schemas.trials import TrialOut
from ..schemas.wire import Page
from ..studies import predictions as predicting
from ..studies import studies
from ..studies.foresight import foresee
from .dependencies import ContextDep, Cursor, Id, IdempotencyKey, Limit, Reader, Writer, problems
from .idempotency import IdempotentRoute

router = APIRouter(tags=["studies"], route_class=IdempotentRoute)
STUDY_BODY = {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/StudySpec"}}}}}
_ETAG = re.compile(r'^"(\d{1,9})\.(\d{1,9})"$')


class Order(StrEnum):
    """By age."""

    NEWEST = "newest"
    OLDEST = "oldest"


class ExportFormat(StrEnum):
    """What a study is exported as."""

    CSV = "csv"
    JSON = "json"
    OPTUNA = "optuna"


def etag(study: Study) -> str:
    """The entity tag: any change of the study or its trials changes it.

    If-Match compares only its first part, the revision of the settings: a trial's report does not invalidate a PATCH.
    """
    return f'"{study.revision}.{study.version}"'


def _revision(if_match: str | None) -> int | None:
    if if_match is None or if_match == "*":
        return None
    found = _ETAG.match(if_match)
    if found is None:
        raise Changed("If-Match holds no ETag of a study; read the study again, then change it")
    return int(found.group(1))


def _out(response: Response, found: tuple[Study, TrialCounts], waiting_for: str | None = None) -> StudyOut:
    response.headers["ETag"] = etag(found[0])
    return StudyOut.of(*found, waiting_for=waiting_for)


@router.post("/studies", status_code=201, responses=problems(409), openapi_extra=STUDY_BODY)
def create_study(
    ctx: ContextDep,
    principal: Writer,
    response: Response,
    body: Annotated[Any, Body()],
    idempotency_key: IdempotencyKey = None,
) -> StudyCreated:
    """Create a study. It is validated in full before it is stored. Returns its predictions, too."""
    study, planned = studies.create_study(ctx, principal, body)
    response.headers["Location"] = f"/api/v1/studies/{study.id}"
    response.headers["ETag"] = etag(study)
    return StudyCreated(
        **dict(StudyOut.of(study, {}, reading.waiting_for(ctx, study, {}))),
        predictions=rankings(predicting.rankings(planned.spec, planned.plan, planned.predictions)),
        layers=list(study.plan.shapes),
    )


@router.get("/studies", responses=problems())
def list_studies(
    ctx: ContextDep,
    principal: Reader,
    limit: Limit = 50,
    cursor: Cursor = None,
    state: Annotated[list[StudyState], Query(max_length=6)] = [],  # noqa: B006  # FastAPI copies it
    name: Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$", description="A part of the name.")] = None,
    order: Order = Order.NEWEST,
) -> Page[StudyOut]:
    """List studies by age, filtered by state and by a part of the name."""
    found, next_cursor = studies.list_studies(
        ctx, principal.scope, limit, cursor, name=name, states=state, ascending=order is Order.OLDEST
    )
    return Page(items=[StudyOut.of(s, counts) for s, counts in found], next_cursor=next_cursor)


@router.get(
    "/studies/{study_id}",
    response_model=StudyOut,
    responses=problems(404) | {304: {"description": "As If-None-Match has it"}},
)
def get_study(
    ctx: ContextDep,
    principal: Reader,
    response: Response,
    study_id: Id,
    if_none_match: Annotated[str | None, Header(max_length=200)] = None,
) -> Any:
    """Get a study with its progress."""
    found = studies.get_study(ctx, study_id, principal.scope)
    tag = etag(found[0])
    if if_none_match is not None and tag in (part.strip() for part in if_none_match.split(",")):
        return Response(status_code=304, headers={"ETag": tag})
    return _out(response, found, reading.waiting_for(ctx, *found))


@router.patch("/studies/{study_id}", responses=problems(404, 409, 412))
def update_study(
    ctx: ContextDep,
    principal: Writer,
    response: Response,
    study_id: Id,
    body: StudyChanges,
    if_match: Annotated[str | None, Header(max_length=200)] = None,
) -> StudyOut:
    """Change name, number of trials, priority, concurrency, retries or limits. The study may be running."""
    return _out(response, studies.update_study(ctx, principal, study_id, body, _revision(if_match)))


@router.delete("/studies/{study_id}", status_code=204, responses=problems(404))
def delete_study(
    ctx: ContextDep,
    principal: Writer,
    study_id: Id,
    purge: Annotated[bool, Query(description="Remove rows and artifacts now, not after CDKA_PURGE_HOURS.")] = False,
) -> None:
    """Delete a study with its trials and adapters. Cancels it first if it runs."""
    studies.delete_study(ctx, principal, study_id, purge_now=purge)


@router.post("/studies/{study_id}/pause", responses=problems(404, 409))
def pause_study(
    ctx: ContextDep,
    principal: Writer,
    response: Response,
    study_id: Id,
    drain: Annotated[bool, Query(description="Let running trials end; else they go back to the queue now.")] = True,
    idempotency_key: IdempotencyKey = None,
) -> StudyOut:
    """Start no more trials until the study is resumed."""
    return _out(response, studies.pause_study(ctx, principal, study_id, drain=drain))


@router.post("/studies/{study_id}/resume", responses=problems(404, 409))
def resume_study(
    ctx: ContextDep, principal: Writer, response: Response, study_id: Id, idempotency_key: IdempotencyKey = None
) -> StudyOut:
    """Resume a paused study."""
    return _out(response, studies.resume_study(ctx, principal, study_id))


@router.post("/studies/{study_id}/cancel", responses=problems(404, 409))
def cancel_study(
    ctx: ContextDep, principal: Writer, response: Response, study_id: Id, idempotency_key: IdempotencyKey = None
) -> StudyOut:
    """Cancel a study: queued trials end now, running ones stop at their next report."""
    return _out(response, studies.cancel_study(ctx, principal, study_id))


@router.get("/studies/{study_id}/predictions", responses=problems(404))
def study_predictions(ctx: ContextDep, principal: Reader, study_id: Id) -> list[RankingOut]:
    """Get the predictors' rankings for the study's budget."""
    return rankings(predicting.get_predictions(ctx, study_id, principal.scope))


@router.get("/studies/{study_id}/comparison", responses=problems(404))
def study_comparison(ctx: ContextDep, principal: Reader, study_id: Id) -> ComparisonOut:
    """Compare the best found with predictions and baselines, as of now."""
    return ComparisonOut.model_validate(comparison.compare(ctx, study_id, principal.scope))


@router.get("/compare", responses=problems(404, 409))
def compare_studies(
    ctx: ContextDep,
    principal: Reader,
    study: Annotated[list[Annotated[str, Query(max_length=128)]], Query(min_length=1, max_length=20)],
) -> list[ComparisonOut]:
    """Get the comparisons of several studies, which must have one metric and one test split."""
    groups.require_comparable(ctx, study, principal.scope)
    return [ComparisonOut.model_validate(comparison.compare(ctx, one, principal.scope)) for one in study]


@router.get("/studies/{study_id}/front", responses=problems(404))
def study_front(ctx: ContextDep, principal: Reader, study_id: Id) -> ParetoOut:
    """Get the Pareto front of the finished search trials."""
    objectives, trials = reading.front(ctx, study_id, principal.scope)
    return ParetoOut(objectives=objectives, trials=[TrialOut.model_validate(t) for t in trials])


_FILES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/csv": {"schema": {"type": "string"}},
            "application/json": {"schema": {"type": "object"}},
            "application/vnd.sqlite3": {"schema": {"type": "string", "format": "binary"}},
        }
    }
}


@router.get("/studies/{study_id}/export", responses=problems(404) | _FILES, response_class=Response)
def export_study(
    ctx: ContextDep,
    principal: Reader,
    study_id: Id,
    form: Annotated[ExportFormat, Query(alias="format")] = ExportFormat.CSV,
) -> Response:
    """Export a study as CSV (trials), JSON (everything), or an SQLite file for ``optuna.load_study``."""
    if form is ExportFormat.OPTUNA:
        file = optuna_export.as_optuna(ctx, study_id, principal.scope)
        return FileResponse(
            file,
            media_type="application/vnd.sqlite3",
            filename=f"{study_id}.db",
            background=BackgroundTask(remove_file, file),
        )
    name = {"Content-Disposition": f'attachment; filename="{study_id}.{form}"'}
    if form is ExportFormat.CSV:
        return StreamingResponse(export.as_csv(ctx, study_id, principal.scope), media_type="text/csv", headers=name)
    return StreamingResponse(
        export.as_json(ctx, study_id, principal.scope), media_type="application/json", headers=name
    )


def remove_file(file: Path) -> None:
    """Remove a temporary file after it was sent."""
    file.unlink(missing_ok=True)


@router.post("/predictions", responses=problems())
def predictions(
    ctx: ContextDep, principal: Reader, body: PredictionRequest, idempotency_key: IdempotencyKey = None
) -> PredictionsOut:
    """Get predictions for a model, a task and a budget. Stores nothing."""
    plan, found = foresee(ctx, principal, body.model, body.task.kind, body.adapter, body.budget, body.predictors)
    budget = BudgetOut(
        max_parameters=plan.max_parameters, base_parameters=plan.base_parameters, adapted_layers=len(plan.shapes)
    )
    return PredictionsOut(budget=budget, predictions=rankings(found))
