"""The pages: login, list of studies, one study, operation."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, cast

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from ..api.dependencies import SESSION_COOKIE, ContextDep
from ..api.limits import RateLimits
from ..api.openapi import document
from ..api.proxies import prefix_of
from ..context.context import Context
from ..domain.states import STUDY_ENDED, TrialPhase, TrialState
from ..errors import Forbidden, NotFound, ServiceError, TooMany, Unauthorized
from ..leases import hosts
from ..results import reading
from ..schemas.studies import StudyOut
from ..studies import studies, trials
from ..tenancy import teams, tokens
from .shell import principal_of, require_member, require_same_origin, templates, to_login
from .study_view import StudyView, study_view
from .trial_table import SORTS, Query

SHOWN_STUDIES = 50
SHOWN_ENTRIES = 50
SHOWN_RUNNING = 20
# A runner of which nothing was heard for so long is shown as silent.
SILENT_AFTER = reading.RUNNER_SEEN
router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
def openapi_document(request: Request) -> JSONResponse:
    """The OpenAPI document, with the prefix of the caller's proxy."""
    return JSONResponse({**document(request.app), "servers": [{"url": prefix_of(request) or "/"}]})


@router.get("/docs")
def docs_page(request: Request) -> HTMLResponse:
    """The API's interactive documentation."""
    return templates.TemplateResponse(request, "docs.html")


@router.get("/login")
def login_page(request: Request) -> HTMLResponse:
    """Ask for a token. A token in the URL's fragment logs in at once; fragments never reach a server's log."""
    return templates.TemplateResponse(request, "login.html", {"error": None})


@router.post("/login")
def log_in(request: Request, ctx: ContextDep, token: Annotated[str, Form(max_length=200)]) -> Response:
    """Exchange a token for a session cookie."""
    require_same_origin(request)
    try:
        cookie = tokens.log_in(ctx, token.strip())
    except (Unauthorized, Forbidden) as refused:
        error = _counted(request, refused)
        return templates.TemplateResponse(request, "login.html", {"error": error.detail}, status_code=error.status)
    response = RedirectResponse("/", status_code=303)
    response.set_cookie(
        SESSION_COOKIE,
        cookie,
        max_age=int(tokens.SESSION_TIME.total_seconds()),
        path=prefix_of(request) or "/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


def _counted(request: Request, refused: ServiceError) -> ServiceError:
    """The answer to a wrong login: that it is wrong, or that there were too many."""
    limits = cast(RateLimits, request.app.state.limits)
    try:
        limits.count_refusal(request.client.host if request.client else "unknown")
    except TooMany as error:
        return error
    return refused


@router.post("/logout")
def log_out(request: Request, ctx: ContextDep) -> Response:
    """End the session."""
    require_same_origin(request)
    cookie = request.cookies.get(SESSION_COOKIE)
    if cookie:
        tokens.log_out(ctx, cookie)
    response = to_login()
    response.delete_cookie(SESSION_COOKIE, path=prefix_of(request) or "/")
    return response


@router.get("/")
def studies_page(request: Request, ctx: ContextDep, cursor: str | None = None) -> Response:
    """List studies, newest first."""
    principal = principal_of(request, ctx)
    if principal is None:
        return to_login()
    found, next_cursor = studies.list_studies(ctx, principal.scope, SHOWN_STUDIES, cursor)
    shown = [StudyOut.of(s, counts) for s, counts in found]
    return templates.TemplateResponse(
        request,
        "studies.html",
        {
            "principal": principal,
            "place": "studies",
            "studies": shown,
            "next_cursor": next_cursor,
            "live": _any_live(shown),
        },
    )


def _any_live(shown: list[StudyOut]) -> bool:
    return any(s.state not in STUDY_ENDED for s in shown)


@router.get("/studies/{study_id}")
def study_page(request: Request, ctx: ContextDep, study_id: str) -> Response:
    """Show a study: state, charts, trials, predictions, comparison."""
    principal = principal_of(request, ctx)
    if principal is None:
        return to_login()
    try:
        view = study_view(ctx, principal, study_id, Query.of(dict(request.query_params)))
    except NotFound as error:
        return templates.TemplateResponse(
            request, "missing.html", {"principal": principal, "detail": error.detail}, status_code=404
        )
    return templates.TemplateResponse(
        request,
        "study.html",
        {"principal": principal, "place": "studies", **_shown(view), **_running(ctx, study_id)},
    )


@router.get("/studies/{study_id}/body")
def study_body(request: Request, ctx: ContextDep, study_id: str, version: int = -1) -> Response:
    """The parts of a study's page that change; 204 if the page is up to date."""
    principal = principal_of(request, ctx)
    if principal is None:
        raise Unauthorized("log in again")
    study, _ = studies.get_study(ctx, study_id, principal.scope)
    if study.version == version:
        return Response(status_code=204)
    view = study_view(ctx, principal, study_id, Query.of(dict(request.query_params)))
    return templates.TemplateResponse(request, "study_body.html", _shown(view))


@router.get("/studies/{study_id}/running")
def study_running(request: Request, ctx: ContextDep, study_id: str) -> Response:
    """The trials of a study that run now."""
    principal = principal_of(request, ctx)
    if principal is None:
        raise Unauthorized("log in again")
    studies.get_study(ctx, study_id, principal.scope)
    return templates.TemplateResponse(request, "study_running.html", _running(ctx, study_id))


def _running(ctx: Context, study_id: str) -> dict[str, Any]:
    """The running trials with how far they are, the first ones to end first."""
    progress = trials.progress_of(ctx, study_id)
    found, _ = trials.list_trials(ctx, study_id, None, SHOWN_RUNNING, None, [TrialState.RUNNING])
    running = [(trial, progress[trial.id]) for trial in found if trial.id in progress]
    return {"running": running, "more": max(0, len(progress) - len(running))}


def _shown(view: StudyView) -> dict[str, Any]:
    return {"view": view, "states": list(TrialState), "phases": list(TrialPhase), "sorts": SORTS}


class Verb(StrEnum):
    """The actions of a study's buttons."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"


@router.post("/studies/{study_id}/{verb}")
def steer(request: Request, ctx: ContextDep, study_id: str, verb: Verb) -> Response:
    """Run a button's action and return to the page."""
    require_same_origin(request)
    principal = require_member(request, ctx, f"{verb} a study")
    try:
        if verb is Verb.PAUSE:
            studies.pause_study(ctx, principal, study_id, drain=True)
        elif verb is Verb.RESUME:
            studies.resume_study(ctx, principal, study_id)
        else:
            studies.cancel_study(ctx, principal, study_id)
    except ServiceError as error:
        if error.status != 409:
            raise
    return RedirectResponse(f"/studies/{study_id}", status_code=303)


@router.get("/operation")
def operation_page(request: Request, ctx: ContextDep) -> Response:
    """Show teams with their quotas, runners, and the audit log."""
    principal = principal_of(request, ctx)
    if principal is None:
        return to_login()
    entries, _ = tokens.read_audit(ctx, principal.scope, SHOWN_ENTRIES, None, None)
    return templates.TemplateResponse(
        request,
        "operation.html",
        {
            "principal": principal,
            "place": "operation",
            "silent_since": ctx.clock() - SILENT_AFTER,
            "teams": teams.list_teams(ctx, principal.scope),
            "runners": teams.list_runners(ctx, principal.scope),
            "quarantined": [h for h in hosts.list_hosts(ctx) if h.quarantined_at is not None],
            "entries": entries,
        },
    )
