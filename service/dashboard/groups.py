"""The page of linked studies, and that of the predictors' record."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from ..api.dependencies import ContextDep
from ..domain.group_results import Group
from ..domain.records import Principal
from ..domain.states import STUDY_ENDED
from ..errors import NotFound, Unauthorized
from ..results import groups, record
from ..results.group_reports import TITLES, WORDS, shown
from ..results.sentences import Told
from .shell import principal_of, templates, to_login

router = APIRouter(include_in_schema=False)


@router.get("/groups/{group_id}")
def group_page(request: Request, ctx: ContextDep, group_id: str) -> Response:
    """Show linked studies as one answer."""
    principal = principal_of(request, ctx)
    if principal is None:
        return to_login()
    try:
        group = groups.get_group(ctx, group_id, principal.scope)
    except NotFound as error:
        return templates.TemplateResponse(
            request, "missing.html", {"principal": principal, "detail": error.detail}, status_code=404
        )
    return templates.TemplateResponse(request, "group.html", _shown(principal, group))


def _shown(principal: Principal, group: Group) -> dict[str, object]:
    return {
        "principal": principal,
        "place": "studies",
        "group": group,
        "live": any(point.study.state not in STUDY_ENDED for point in group.points),
        "names": shown(group),
        "titles": TITLES,
        "words": WORDS,
        "told": Told.of(group.points[0].study),
        "drawn": sum(point.study.version for point in group.points),
    }


@router.get("/groups/{group_id}/picture.svg")
def group_picture(request: Request, ctx: ContextDep, group_id: str) -> Response:
    """The metric of best found, guideline and LoRA against the budget, or by study."""
    principal = principal_of(request, ctx)
    if principal is None:
        raise Unauthorized("log in again")
    from ..results import pictures

    group = groups.get_group(ctx, group_id, principal.scope)
    # Its styles are its own: it is a document that loads nothing and runs nothing.
    policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}
    return Response(pictures.group(group), media_type="image/svg+xml", headers=policy)


@router.get("/predictors")
def predictors_page(request: Request, ctx: ContextDep) -> Response:
    """Show how the team's predictors fared."""
    principal = principal_of(request, ctx)
    if principal is None:
        return to_login()
    records = record.record_of(ctx, principal.scope)
    return templates.TemplateResponse(
        request, "predictors.html", {"principal": principal, "place": "predictors", "records": records}
    )
