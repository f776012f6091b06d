"""Reports of studies and of groups, to hand on."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from ..results import group_reports, reports
from .dependencies import ContextDep, Id, Reader, problems

router = APIRouter(tags=["reports"])


class ReportFormat(StrEnum):
    """What a report is written as."""

    HTML = "html"
    MARKDOWN = "md"
    JSON = "json"


_TYPES = {
    ReportFormat.HTML: "text/html; charset=utf-8",
    ReportFormat.MARKDOWN: "text/markdown; charset=utf-8",
    ReportFormat.JSON: "application/json",
}
_FILES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/html": {"schema": {"type": "string"}},
            "text/markdown": {"schema": {"type": "string"}},
            "application/json": {"schema": {"type": "object"}},
        }
    }
}
Form = Annotated[ReportFormat, Query(alias="format")]


@router.get("/studies/{study_id}/report", responses=problems(404) | _FILES, response_class=Response)
def study_report(ctx: ContextDep, principal: Reader, study_id: Id, form: Form = ReportFormat.HTML) -> Response:
    """Get a report to hand on: one HTML file, Markdown, or JSON that ``cdka submit`` runs again."""
    report = reports.report_of(ctx, study_id, principal.scope)
    written = {
        ReportFormat.HTML: reports.as_html,
        ReportFormat.MARKDOWN: reports.as_markdown,
        ReportFormat.JSON: reports.as_json,
    }
    return Response(written[form](report), media_type=_TYPES[form])


@router.get("/groups/{group_id}/report", responses=problems(404) | _FILES, response_class=Response)
def group_report(ctx: ContextDep, principal: Reader, group_id: Id, form: Form = ReportFormat.HTML) -> Response:
    """Get a report of a group: what its studies say together, then each of them."""
    found = group_reports.report_of(ctx, group_id, principal.scope, form.value)
    return Response(found, media_type=_TYPES[form])
