"""Charts by REST."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from fastapi import APIRouter

from ..api.dependencies import ContextDep, Id, Reader, problems
from ..db.studies import Studies
from ..results.comparison import compare, searched
from ..studies import trials
from . import charts

router = APIRouter(tags=["studies"])


class ChartKind(StrEnum):
    """The charts of a study."""

    HISTORY = "history"
    COMPARISON = "comparison"
    DIFFERENCES = "differences"


@router.get("/studies/{study_id}/charts/{kind}", responses=problems(404))
def chart(ctx: ContextDep, principal: Reader, study_id: Id, kind: ChartKind) -> dict[str, Any]:
    """A chart of a study as a Plotly figure."""
    with ctx.db.read() as session:
        study = Studies(session).get(study_id, principal.scope)
    if kind is not ChartKind.HISTORY:
        waiting = "" if study.spec.compare.first_seeds else "nothing is confirmed: compare.seeds is 0"
        draw = charts.comparison if kind is ChartKind.COMPARISON else charts.differences
        return draw(compare(ctx, study_id, principal.scope), waiting)
    key = ("history chart", study_id, study.version)
    return ctx.recent.get(key, lambda: charts.history(study, searched(ctx, study_id)))


@router.get("/trials/{trial_id}/chart", tags=["trials"], responses=problems(404))
def trial_chart(ctx: ContextDep, principal: Reader, trial_id: Id) -> dict[str, Any]:
    """A trial's evaluations beside the median of the others, as a Plotly figure."""
    trial = trials.get_trial(ctx, trial_id, principal.scope)
    with ctx.db.read() as session:
        study = Studies(session).get(trial.study_id, principal.scope)
    return charts.curve(study, trial, searched(ctx, trial.study_id))
