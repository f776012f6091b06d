"""The pages: login, list of studies, one study, operation."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, cast
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from pydantic import ValidationError

from ..api.dependencies import SESSION_COOKIE, ContextDep
from ..api.limits import RateLimits
from ..api.openapi import document
from ..api.proxies import prefix_of
from ..context.context import Context
from ..domain.comparison import Comparison
from ..domain.faults import schema_faults
from ..domain.records import Principal
from ..domain.states import STUDY_ENDED, StudyState, TrialPhase, TrialState
from ..domain.study_spec import StudyChanges
from ..errors import Forbidden, NotFound, ServiceError, TooMany, Unauthorized
from ..leases import hosts
from ..results import reading
from ..results.comparison import compare
from ..results.group_reports import WORDS
from ..results.groups import GUIDELINE
from ..schemas.studies import StudyOut
from ..studies import studies, trials
from ..tenancy import teams, tokens
from .charts_api import ChartKind
from .shell import may_write, principal_of, require_member, require_same_origin, templates, to_login
from .study_view import StudyView, study_view
from .trial_table import Query as TableQuery
from .trial_table import cell

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
def studies_page(
    request: Request,
    ctx: ContextDep,
    cursor: str | None = None,
    name: Annotated[str | None, Query(max_length=200)] = None,
    state: str | None = None,
    order: str | None = None,
) -> Response:
    """List studies by age, filtered by a part of the name and by state."""
    principal = principal_of(request, ctx)
    if principal is None:
        return to_login()
    states = [StudyState(state)] if state in list(StudyState) else []
    text = "".join(c for c in name or "" if c.isprintable()) or None
    oldest = order == "oldest"
    found, next_cursor = studies.list_studies(
        ctx, principal.scope, SHOWN_STUDIES, cursor, name=text, states=states, ascending=oldest
    )
    shown = [StudyOut.of(s, counts) for s, counts in found]
    kept = {"name": text, "state": state if states else None, "order": "oldest" if oldest else None}
    address = {k: v for k, v in {**kept, "cursor": next_cursor}.items() if v is not None}
    return templates.TemplateResponse(
        request,
        "studies.html",
        {
            "principal": principal,
            "place": "studies",
            "studies": shown,
            "states": list(StudyState),
            **kept,
            "filtered": bool(text or states or cursor),
            "next_cursor": next_cursor,
            "next_address": urlencode(address),
            "live": _any_live(shown),
            "now": ctx.clock(),
            "may_write": may_write(principal),
        },
    )


@router.get("/headlines")
def headlines(
    request: Request, ctx: ContextDep, study: Annotated[list[str], Query(min_length=1, max_length=10)]
) -> JSONResponse:
    """The best value and the verdict of studies in the list, as they are told."""
    principal = principal_of(request, ctx)
    if principal is None:
        raise Unauthorized("log in again")
    found = {}
    for one in study:
        try:
            found[one] = headline(compare(ctx, one, principal.scope))
        except NotFound:
            continue
    return JSONResponse(found)


def headline(comparison: Comparison) -> tuple[str, str]:
    """Best value so far, and in a word how it stands against the guideline."""
    best = comparison.best_trial
    asked = next((c for c in comparison.candidates if c.name == GUIDELINE), None)
    kind = asked.verdict.kind if asked is not None and asked.verdict is not None else None
    return "" if best is None else f"{best['mean']:.4f}", WORDS.get(kind, "") if kind is not None else ""


def _any_live(shown: list[StudyOut]) -> bool:
    return any(s.state not in STUDY_ENDED for s in shown)


@router.get("/studies/{study_id}")
def study_page(request: Request, ctx: ContextDep, study_id: str) -> Response:
    """Show a study: state, charts, trials, predictions, comparison."""
    principal = principal_of(request, ctx)
    if principal is None:
        return to_login()
    return study_with(request, ctx, principal, study_id)


def study_with(
    request: Request, ctx: Context, principal: Principal, study_id: str, said: str = "", status: int = 200
) -> Response:
    """The page of a study with a sentence on top: what could not be done."""
    try:
        view = study_view(ctx, principal, study_id, TableQuery.of(dict(request.query_params)))
    except NotFound as error:
        return templates.TemplateResponse(
            request, "missing.html", {"principal": principal, "detail": error.detail}, status_code=404
        )
    shown = {
        "principal": principal,
        "place": "studies",
        "said": said,
        "charts": CHARTS,
        "asked": _asked(request),
        **_shown(view),
        **_running(ctx, study_id),
    }
    return templates.TemplateResponse(request, "study.html", shown, status_code=status)


@router.get("/studies/{study_id}/body")
def study_body(request: Request, ctx: ContextDep, study_id: str, version: int = -1) -> Response:
    """The parts of a study's page that change; 204 if the page is up to date."""
    principal = principal_of(request, ctx)
    if principal is None:
        raise Unauthorized("log in again")
    study, _ = studies.get_study(ctx, study_id, principal.scope)
    if study.version == version:
        return Response(status_code=204)
    view = study_view(ctx, principal, study_id, TableQuery.of(dict(request.query_params)))
    return templates.TemplateResponse(request, "study_body.html", {"principal": principal, **_shown(view)})


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


# The charts that a study's page offers, with what each shows.
CHARTS = (
    (ChartKind.PARALLEL, "parallel coordinates"),
    (ChartKind.SLICE, "slice: result against a parameter"),
    (ChartKind.CONTOUR, "contour: result over two parameters"),
    (ChartKind.CURVES, "evaluations of every trial"),
    (ChartKind.PARETO, "quality against parameters"),
    (ChartKind.PREDICTED, "predicted against observed"),
    (ChartKind.IMPORTANCES, "importances"),
    (ChartKind.EFFECTS, "effects: adjusted means"),
    (ChartKind.DISTRIBUTION, "distribution of results"),
    (ChartKind.REGRET, "regret: behind the best found"),
    (ChartKind.TIMELINE, "timeline of runners"),
    (ChartKind.COMPARISON, "candidates on the test split"),
)
# Columns of words; numbers are right-aligned.
PLAIN_COLUMNS = ("phase", "state", "method", "structure", "candidate", "failure", "target_modules")
TITLES = {"number": "#", "structure": "r1, r2, r"}
# These are made of several values, or are not in the history that is sorted.
UNSORTED = ("structure", "parameters", "seconds", "attempts", "started")


def _shown(view: StudyView) -> dict[str, Any]:
    return {
        "view": view,
        "states": list(TrialState),
        "phases": list(TrialPhase),
        "plain_columns": PLAIN_COLUMNS,
        "titles": TITLES,
        "unsorted": UNSORTED,
        "cell": cell,
    }


def _asked(request: Request) -> dict[str, str | None]:
    """The chart that the address asks for."""
    given = request.query_params
    chart = given.get("chart", "")
    return {
        "chart": chart if chart in set(ChartKind) else ChartKind.PARALLEL,
        **{name: given.get(name) for name in ("x", "y", "predictor")},
    }


class Verb(StrEnum):
    """The actions of a study's buttons."""

    PAUSE = "pause"
    STOP = "stop"
    RESUME = "resume"
    CANCEL = "cancel"


@router.post("/studies/{study_id}/change")
def change(
    request: Request,
    ctx: ContextDep,
    study_id: str,
    name: Annotated[str, Form(max_length=200)] = "",
    trials_wanted: Annotated[str, Form(max_length=10, alias="trials")] = "",
    concurrency: Annotated[str, Form(max_length=10)] = "",
    priority: Annotated[str, Form(max_length=10)] = "",
    seeds: Annotated[str, Form(max_length=10)] = "",
) -> Response:
    """Change a study; what is left empty stays. What cannot be done is said on the page."""
    require_same_origin(request)
    principal = require_member(request, ctx, "change a study")
    numbers = {"trials": trials_wanted, "concurrency": concurrency, "priority": priority, "seeds": seeds}
    given: dict[str, Any] = {}
    for key, text in numbers.items():
        if not text.strip():
            continue
        try:
            given[key] = int(text)
        except ValueError:
            said = f"{key} must be a whole number; nothing was changed"
            return study_with(request, ctx, principal, study_id, said, 422)
    if name.strip():
        given["name"] = name.strip()
    try:
        changes = StudyChanges.model_validate(given)
    except ValidationError as error:
        said = "; ".join(f"{f.pointer.removeprefix('#/')}: {f.detail}" for f in schema_faults(error))
        return study_with(request, ctx, principal, study_id, f"{said}; nothing was changed", 422)
    return _done(request, ctx, principal, study_id, lambda: studies.update_study(ctx, principal, study_id, changes))


@router.post("/studies/{study_id}/{verb}")
def steer(request: Request, ctx: ContextDep, study_id: str, verb: Verb) -> Response:
    """Run a button's action and return to the page."""
    require_same_origin(request)
    principal = require_member(request, ctx, f"{verb} a study")
    actions: dict[Verb, Callable[[], object]] = {
        Verb.PAUSE: lambda: studies.pause_study(ctx, principal, study_id, drain=True),
        Verb.STOP: lambda: studies.pause_study(ctx, principal, study_id, drain=False),
        Verb.RESUME: lambda: studies.resume_study(ctx, principal, study_id),
        Verb.CANCEL: lambda: studies.cancel_study(ctx, principal, study_id),
    }
    return _done(request, ctx, principal, study_id, actions[verb])


def _done(
    request: Request, ctx: Context, principal: Principal, study_id: str, action: Callable[[], object]
) -> Response:
    """Act, and return to the page; a refusal is said there."""
    try:
        action()
    except NotFound:
        raise
    except ServiceError as error:
        if error.status not in (409, 422):
            raise
        details = "; ".join(f.detail for f in error.faults) or error.detail
        return study_with(request, ctx, principal, study_id, details, error.status)
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
