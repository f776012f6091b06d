"""Groups of studies, and the record of predictors."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Response

from ..results import groups as results
from ..results import record
from ..schemas.groups import GroupCreated, GroupOut, RecordOut, RecordsOut
from ..schemas.studies import StudyCreated, StudyOut, rankings
from ..studies import groups
from ..studies import predictions as predicting
from .dependencies import ContextDep, Id, IdempotencyKey, Reader, Writer, problems
from .idempotency import IdempotentRoute

router = APIRouter(tags=["groups"], route_class=IdempotentRoute)

GROUP_BODY = {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/GroupSpec"}}}}}


@router.post("/groups", status_code=201, responses=problems(409), openapi_extra=GROUP_BODY)
def create_group(
    ctx: ContextDep,
    principal: Writer,
    response: Response,
    body: Annotated[Any, Body()],
    idempotency_key: IdempotencyKey = None,
) -> GroupCreated:
    """Create linked studies: one for each of budgets, models or tasks, or search.repeats of one. All or none."""
    place, made = groups.create_group(ctx, principal, body)
    response.headers["Location"] = f"/api/v1/groups/{place.id}"
    created = [
        StudyCreated(
            **dict(StudyOut.of(study, {})),
            predictions=rankings(predicting.rankings(planned.spec, planned.plan, planned.predictions)),
            layers=list(study.plan.shapes),
        )
        for study, planned in made
    ]
    return GroupCreated(id=place.id, name=place.name, axis=place.axis, studies=created)


@router.get("/groups/{group_id}", responses=problems(404))
def get_group(ctx: ContextDep, principal: Reader, group_id: Id) -> GroupOut:
    """Get linked studies as one answer: where searching pays, with intervals that hold together."""
    return GroupOut.of(results.get_group(ctx, group_id, principal.scope))


@router.get("/predictors/record", responses=problems())
def predictors_record(ctx: ContextDep, principal: Reader) -> RecordsOut:
    """Get how the team's predictors fared in all its confirmed studies."""
    return RecordsOut(items=[RecordOut.model_validate(one) for one in record.record_of(ctx, principal.scope)])
