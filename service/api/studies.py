"""Studies, their predictions and their comparison."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Response

from ..domain.metrics import METRICS
from ..errors import Fault, InvalidRequest
from ..scheduling import comparing, studies
from ..scheduling.planning import plan_prediction
from ..scheduling.predicting import get_predictions
from ..schemas.common import Page
from ..schemas.comparison import ComparisonOut
from ..schemas.studies import (
    BudgetOut,
    PredictionRequest,
    PredictionsOut,
    RankingOut,
    StudyCreated,
    StudyOut,
    rankings,
)
from .dependencies import ContextDep, Reader, Writer, problems, scope

router = APIRouter(tags=["studies"])
Limit = Annotated[int, Query(ge=1, le=200)]
STUDY_BODY = {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/StudySpec"}}}}}


@router.post("/studies", status_code=201, responses=problems(), openapi_extra=STUDY_BODY)
def create_study(ctx: ContextDep, principal: Writer, response: Response, body: Annotated[Any, Body()]) -> StudyCreated:
    """Create a study. It is validated in full before it is stored; the answer holds what the predictors say."""
    study, planned = studies.create_study(ctx, principal.team_id, body)
    response.headers["Location"] = f"/api/v1/studies/{study.id}"
    return StudyCreated(
        **dict(StudyOut.of(study, {})),
        predictions=rankings(planned.predictions),
        layers=list(study.plan.shapes),
    )


@router.get("/studies", responses=problems())
def list_studies(
    ctx: ContextDep, principal: Reader, limit: Limit = 50, cursor: Annotated[str | None, Query(max_length=64)] = None
) -> Page[StudyOut]:
    """Studies, newest first."""
    found, next_cursor = studies.list_studies(ctx, scope(principal), limit, cursor)
    return Page(items=[StudyOut.of(s, counts) for s, counts in found], next_cursor=next_cursor)


@router.get("/studies/{study_id}", responses=problems(404))
def get_study(ctx: ContextDep, principal: Reader, study_id: str) -> StudyOut:
    """One study with its progress."""
    return StudyOut.of(*studies.get_study(ctx, study_id, scope(principal)))


@router.post("/studies/{study_id}/cancel", responses=problems(404, 409))
def cancel_study(ctx: ContextDep, principal: Writer, study_id: str) -> StudyOut:
    """Cancel a study: queued trials end now, running ones stop at their next report."""
    return StudyOut.of(*studies.cancel_study(ctx, study_id, scope(principal)))


@router.get("/studies/{study_id}/predictions", responses=problems(404))
def study_predictions(ctx: ContextDep, principal: Reader, study_id: str) -> list[RankingOut]:
    """What the predictors said of the study's budget before it began."""
    return rankings(get_predictions(ctx, study_id, scope(principal)))


@router.get("/studies/{study_id}/comparison", responses=problems(404))
def study_comparison(ctx: ContextDep, principal: Reader, study_id: str) -> ComparisonOut:
    """The search's best against predictions and baselines, as it stands."""
    return ComparisonOut.model_validate(comparing.compare(ctx, study_id, scope(principal)))


@router.post("/predictions", responses=problems())
def predictions(ctx: ContextDep, principal: Reader, body: PredictionRequest) -> PredictionsOut:
    """Predictions for a model, a task and a budget; nothing is stored."""
    if body.task.kind not in METRICS:
        fault = Fault("#/task/kind", f"unknown task {body.task.kind!r}; there are: {', '.join(METRICS)}")
        raise InvalidRequest("no prediction can be made", [fault])
    plan, ranked = plan_prediction(body.model, body.task.kind, body.adapter, body.budget, ctx.settings.data_dirs)
    budget = BudgetOut(
        max_parameters=plan.max_parameters, base_parameters=plan.base_parameters, adapted_layers=len(plan.shapes)
    )
    return PredictionsOut(budget=budget, predictions=rankings(ranked))
