"""Trials and their metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ..domain.states import TrialState
from ..scheduling import trials
from ..schemas.common import Page
from ..schemas.trials import MetricOut, TrialOut
from .dependencies import ContextDep, Reader, problems, scope
from .studies import Limit

router = APIRouter(tags=["trials"])


@router.get("/studies/{study_id}/trials", responses=problems(404))
def list_trials(
    ctx: ContextDep,
    principal: Reader,
    study_id: str,
    limit: Limit = 50,
    cursor: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    state: TrialState | None = None,
) -> Page[TrialOut]:
    """A study's trials by number."""
    found, next_cursor = trials.list_trials(ctx, study_id, scope(principal), limit, cursor, state)
    items = [TrialOut.model_validate(t) for t in found]
    return Page(items=items, next_cursor=None if next_cursor is None else str(next_cursor))


@router.get("/trials/{trial_id}", responses=problems(404))
def get_trial(ctx: ContextDep, principal: Reader, trial_id: str) -> TrialOut:
    """One trial."""
    return TrialOut.model_validate(trials.get_trial(ctx, trial_id, scope(principal)))


@router.get("/trials/{trial_id}/metrics", responses=problems(404))
def get_metrics(ctx: ContextDep, principal: Reader, trial_id: str) -> Page[MetricOut]:
    """Every value that a trial reported, by step."""
    found = trials.get_metrics(ctx, trial_id, scope(principal))
    return Page(items=[MetricOut.model_validate(m) for m in found])
