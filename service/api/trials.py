"""Trials, their metrics and their adapters."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from ..domain.states import TrialPhase, TrialState
from ..errors import Fault, InvalidRequest
from ..leases import trial_logs
from ..results import archives
from ..schemas.trials import MetricOut, TrialLogOut, TrialOut, TrialRequest
from ..schemas.wire import Page
from ..studies import trials
from .dependencies import ContextDep, Id, IdempotencyKey, Limit, Reader, Writer, problems
from .idempotency import IdempotentRoute

router = APIRouter(tags=["trials"], route_class=IdempotentRoute)


class TrialOrder(StrEnum):
    """By number."""

    ASCENDING = "number"
    DESCENDING = "-number"


@router.get("/studies/{study_id}/trials", responses=problems(404))
def list_trials(
    ctx: ContextDep,
    principal: Reader,
    study_id: Id,
    limit: Limit = 50,
    cursor: Annotated[int | None, Query(ge=-1, le=2**31 - 1)] = None,
    state: Annotated[list[TrialState], Query(max_length=7)] = [],  # noqa: B006  # FastAPI copies it
    phase: TrialPhase | None = None,
    order: TrialOrder = TrialOrder.ASCENDING,
) -> Page[TrialOut]:
    """List a study's trials by number, filtered by state and phase."""
    found, next_cursor = trials.list_trials(
        ctx,
        study_id,
        principal.scope,
        limit,
        cursor,
        state,
        phase,
        descending=order is TrialOrder.DESCENDING,
    )
    running = any(t.state is TrialState.RUNNING for t in found)
    progress = trials.progress_of(ctx, study_id) if running else {}
    items = [TrialOut.of(t, progress) for t in found]
    return Page(items=items, next_cursor=None if next_cursor is None else str(next_cursor))


@router.post("/studies/{study_id}/trials", status_code=201, responses=problems(404, 409))
def enqueue_trial(
    ctx: ContextDep,
    principal: Writer,
    response: Response,
    study_id: Id,
    body: TrialRequest,
    idempotency_key: IdempotencyKey = None,
) -> TrialOut:
    """Queue a configuration of the user, or a clone of a trial. It counts as one of the study's search trials."""
    if body.source is not None:
        trial = trials.clone(ctx, principal, study_id, body.source, body.params.given(), warm=body.warm)
    elif body.warm:
        raise InvalidRequest("nothing was enqueued", [Fault("#/warm", "name the trial to start from, with from")])
    else:
        trial = trials.enqueue_trial(ctx, principal, study_id, body.params.required(), body.params)
    response.headers["Location"] = f"/api/v1/trials/{trial.id}"
    return TrialOut.model_validate(trial)


@router.get("/trials/{trial_id}", responses=problems(404))
def get_trial(ctx: ContextDep, principal: Reader, trial_id: Id) -> TrialOut:
    """Get a trial."""
    trial = trials.get_trial(ctx, trial_id, principal.scope)
    running = trial.state is TrialState.RUNNING
    return TrialOut.of(trial, trials.progress_of(ctx, trial.study_id) if running else {})


@router.post("/trials/{trial_id}/stop", responses=problems(404, 409))
def stop_trial(ctx: ContextDep, principal: Writer, trial_id: Id, idempotency_key: IdempotencyKey = None) -> TrialOut:
    """Stop one trial: a queued one now, a running one at its next report. Its study continues."""
    return TrialOut.model_validate(trials.stop_trial(ctx, principal, trial_id))


@router.post("/trials/{trial_id}/retry", responses=problems(404, 409))
def retry_trial(ctx: ContextDep, principal: Writer, trial_id: Id, idempotency_key: IdempotencyKey = None) -> TrialOut:
    """Queue a failed trial again."""
    return TrialOut.model_validate(trials.retry_trial(ctx, principal, trial_id))


@router.get("/trials/{trial_id}/metrics", responses=problems(404))
def get_metrics(ctx: ContextDep, principal: Reader, trial_id: Id) -> Page[MetricOut]:
    """Get every value that a trial reported, by step."""
    found = trials.get_metrics(ctx, trial_id, principal.scope)
    return Page(items=[MetricOut.model_validate(m) for m in found])


@router.get("/trials/{trial_id}/logs", responses=problems(404))
def get_log(
    ctx: ContextDep,
    principal: Reader,
    trial_id: Id,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="By default the last.")] = None,
    after: Annotated[int | None, Query(ge=0, le=2**53, description="By default the end of it.")] = None,
    limit: Annotated[int, Query(ge=1, le=1_000_000, description="Most characters.")] = 65_536,
) -> TrialLogOut:
    """Get an attempt's output. To follow it, repeat with ``after`` set to the response's ``next``."""
    return TrialLogOut.model_validate(trial_logs.read_log(ctx, trial_id, principal.scope, attempt, after, limit))


_ZIP: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.get("/trials/{trial_id}/adapter", responses=problems(404) | _ZIP, response_class=Response)
def get_adapter(ctx: ContextDep, principal: Reader, trial_id: Id) -> StreamingResponse:
    """Download a trial's adapter, as PEFT saved it, as a zip file."""
    pieces, name = archives.adapter_archive(ctx, trial_id, principal.scope)
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)
