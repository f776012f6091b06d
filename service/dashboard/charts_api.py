"""Charts by REST."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from fastapi import APIRouter

from ..api.dependencies import ContextDep, Id, Reader, problems
from ..db.studies import Studies
from ..results.comparison import compare, searched
from . import charts

router = APIRouter(tags=["studies"])


class ChartKind(StrEnum):
    """The charts of a study."""

    HISTORY = "history"
    COMPARISON = "comparison"


@router.get("/studies/{study_id}/charts/{kind}", responses=problems(404))
def chart(ctx: ContextDep, principal: Reader, study_id: Id, kind: ChartKind) -> dict[str, Any]:
    """A chart of a study as a Plotly figure."""
    if kind is ChartKind.COMPARISON:
        return charts.comparison(compare(ctx, study_id, principal.scope))
    with ctx.db.read() as session:
        study = Studies(session).get(study_id, principal.scope)
    key = ("history chart", study_id, study.version)
    return ctx.recent.get(key, lambda: charts.history(study, searched(ctx, study_id)))
