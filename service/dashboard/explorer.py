"""The page that shows what a budget admits, and what the predictors choose, before there is a study."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field, ValidationError

from ..api.dependencies import ContextDep
from ..context.context import Context
from ..domain.metrics import METRICS
from ..domain.plan import Plan
from ..domain.records import Principal
from ..domain.search_space import SearchSpace
from ..domain.study_spec import AdapterSpec, BudgetSpec, ModelSpec
from ..errors import Forbidden, InvalidRequest, Unauthorized
from ..schemas.studies import RankingOut, rankings
from ..studies.foresight import foresee
from ..studies.structures import Admission, admissions
from .shell import principal_of, templates, to_login

router = APIRouter(include_in_schema=False)
PREDICTORS = ("guideline", "alignment")
MOST_RANK = 64
_SHOWN = 8
_SHOWN_SIZES = SearchSpace.model_validate({"r1": {"choices": [1, 2, 4, 8]}, "r2": {"choices": [1, 2, 4, 8, 16, 32]}})


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a budget admits and what the predictors say of it, or why nothing can be said."""

    faults: list[tuple[str, str]] = field(default_factory=list)
    plan: Plan | None = None
    rankings: list[RankingOut] = field(default_factory=list)
    rows: list[list[Admission]] = field(default_factory=list)
    marks: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    start: str = ""


class Asked(BaseModel):
    """What the form asks: a model, a kind of task, and the rank whose cost in LoRA is the budget."""

    model: Annotated[str, Field(max_length=400)] = ""
    kind: Annotated[str, Field(max_length=40)] = "sequence_classification"
    rank: Annotated[str, Field(max_length=4)] = "8"


AskedQuery = Annotated[Asked, Query()]


@router.get("/explore")
def explore_page(request: Request, ctx: ContextDep, asked: AskedQuery) -> Response:
    """Ask for a model, a task and a budget, and show what they admit."""
    principal = principal_of(request, ctx)
    if principal is None:
        return to_login()
    shown = {"kinds": list(METRICS), "most": MOST_RANK, "place": "explore", **asked.model_dump()}
    return _drawn(request, ctx, principal, asked, "explore.html", shown)


@router.get("/explore/shown")
def explored(request: Request, ctx: ContextDep, asked: AskedQuery) -> Response:
    """The part of the page that follows the form."""
    principal = principal_of(request, ctx)
    if principal is None:
        raise Unauthorized("log in again")
    return _drawn(request, ctx, principal, asked, "explore_shown.html", {})


def _drawn(
    request: Request, ctx: Context, principal: Principal, asked: Asked, template: str, shown: dict[str, Any]
) -> Response:
    named = asked.model.strip()
    foreseen = foreseen_of(ctx, principal, asked.model, asked.kind, asked.rank) if named else Foreseen()
    return templates.TemplateResponse(
        request, template, {"principal": principal, "foreseen": foreseen, "rank": asked.rank, **shown}
    )


def foreseen_of(ctx: Context, principal: Principal, model: str, kind: str, rank: str) -> Foreseen:
    """What a model, a task and the cost of LoRA of a rank admit."""
    given: dict[str, Any] = {"lora_rank": int(rank) if rank.isascii() and rank.isdigit() else rank}
    try:
        budget = BudgetSpec.model_validate(given)
        path = ModelSpec(path=model.strip())
    except ValidationError as error:
        return Foreseen([("rank or model", e["msg"]) for e in error.errors()])
    try:
        plan, found = foresee(ctx, principal, path, kind, AdapterSpec(), budget, PREDICTORS)
    except InvalidRequest as error:
        return Foreseen([(f.pointer.removeprefix("#/").replace("/", "."), f.detail) for f in error.faults])
    except Forbidden as error:
        return Foreseen([("model", error.detail)])
    told = rankings(found, shown=_SHOWN)
    marks: dict[tuple[int, int], list[str]] = {}
    for ranking in told:
        if ranking.best:
            marks.setdefault((ranking.best[0].r1, ranking.best[0].r2), []).append(ranking.predictor)
    rows: dict[int, list[Admission]] = {}
    for one in admissions(plan, _SHOWN_SIZES):
        rows.setdefault(one.r1, []).append(one)
    start = urlencode({"model": model.strip(), "kind": kind, "rank": rank})
    return Foreseen([], plan, told, list(rows.values()), marks, start)
