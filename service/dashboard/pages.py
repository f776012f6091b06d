"""The pages: login, list of studies, one study, operation."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

import fastapi_offline
import plotly
from fastapi import APIRouter, FastAPI, Form, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from ..api.dependencies import SESSION_COOKIE, ContextDep, get_principal
from ..api.limits import RateLimits
from ..api.openapi import document
from ..api.proxies import prefix_of
from ..context.context import Context
from ..domain.comparison import Comparison
from ..domain.records import Principal, Role, Study, Trial
from ..domain.search_space import OPTIONAL
from ..domain.states import STUDY_ENDED
from ..domain.statistics import Estimate
from ..errors import Forbidden, NotFound, ServiceError, TooMany, Unauthorized
from ..leases import hosts
from ..results import comparison as comparing
from ..results import reading
from ..schemas.studies import RankingOut, StudyOut, rankings
from ..studies import studies, trials
from ..studies.predictions import get_predictions
from ..tenancy import teams, tokens

HERE = Path(__file__).parent
# The package's pages are its own affair; what is used of it is the Swagger UI that it carries.
SWAGGER_UI = Path(fastapi_offline.__file__).parent / "static"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
SHOWN_TRIALS = 200
SHOWN_STUDIES = 50
SHOWN_ENTRIES = 50
templates = Jinja2Templates(HERE / "templates", context_processors=[lambda request: {"prefix": prefix_of(request)}])
router = APIRouter(include_in_schema=False)


def mount_static(app: FastAPI) -> None:
    """Serve our style sheet and module, and Plotly from its own package."""

    @app.get("/static/plotly.min.js", include_in_schema=False)
    def plotly_js() -> FileResponse:
        return FileResponse(PLOTLY, media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})

    app.mount("/static/swagger-ui", StaticFiles(directory=SWAGGER_UI), name="swagger-ui")
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _signed(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    interval = "" if estimate.low is None else f" [{estimate.low:+.4f}, {estimate.high:+.4f}]"
    return f"{estimate.mean:+.4f}{interval}"


def _parameter(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _when(value: datetime | None) -> str:
    return "–" if value is None else value.strftime("%Y-%m-%d %H:%M:%S UTC")


templates.env.filters |= {"number": _number, "signed": _signed, "parameter": _parameter, "when": _when}


@dataclass(frozen=True, slots=True)
class StudyView:
    """Everything the study page shows."""

    study: Study
    out: StudyOut
    trials: list[Trial]
    older: bool
    rankings: list[RankingOut]
    comparison: Comparison
    live: bool
    version: int
    may_write: bool
    others: list[str] = field(default_factory=list)  # parameters that only some studies search


def _principal(request: Request, ctx: Context) -> Principal | None:
    try:
        principal = get_principal(request, ctx)
    except Unauthorized:
        return None
    if principal.role.runs_trials:
        raise Forbidden("a worker's token cannot open the dashboard")
    return principal


def _to_login() -> RedirectResponse:
    return RedirectResponse("/login", status_code=303)


def _require_same_origin(request: Request) -> None:
    """Forms are taken from our own pages only: the browser says where a request comes from.

    Raises:
        Forbidden: another site sent it.
    """
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise Forbidden("this form was sent from another site")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("this form was sent from another site")


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
    _require_same_origin(request)
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
    _require_same_origin(request)
    cookie = request.cookies.get(SESSION_COOKIE)
    if cookie:
        tokens.log_out(ctx, cookie)
    response = _to_login()
    response.delete_cookie(SESSION_COOKIE, path=prefix_of(request) or "/")
    return response


@router.get("/")
def studies_page(request: Request, ctx: ContextDep, cursor: str | None = None) -> Response:
    """List studies, newest first."""
    principal = _principal(request, ctx)
    if principal is None:
        return _to_login()
    found, next_cursor = studies.list_studies(ctx, principal.scope, SHOWN_STUDIES, cursor)
    shown = [StudyOut.of(s, counts) for s, counts in found]
    return templates.TemplateResponse(
        request,
        "studies.html",
        {"principal": principal, "studies": shown, "next_cursor": next_cursor, "live": _any_live(shown)},
    )


def _any_live(shown: list[StudyOut]) -> bool:
    return any(s.state not in STUDY_ENDED for s in shown)


def _view(ctx: Context, principal: Principal, study_id: str) -> StudyView:
    study, counts = studies.get_study(ctx, study_id, principal.scope)
    # The newest, in the order of their numbers.
    newest, older = trials.list_trials(ctx, study_id, principal.scope, SHOWN_TRIALS, None, descending=True)
    return StudyView(
        study=study,
        out=StudyOut.of(study, counts, reading.waiting_for(ctx, study, counts)),
        trials=newest[::-1],
        older=older is not None,
        rankings=rankings(get_predictions(ctx, study_id, principal.scope), shown=5),
        comparison=comparing.compare(ctx, study_id, principal.scope),
        live=study.state not in STUDY_ENDED,
        version=study.version,
        may_write=principal.role in (Role.ADMIN, Role.MEMBER),
        others=[name for name in OPTIONAL if name in study.spec.search_space.parameters()],
    )


@router.get("/studies/{study_id}")
def study_page(request: Request, ctx: ContextDep, study_id: str) -> Response:
    """Show a study: state, charts, trials, predictions, comparison."""
    principal = _principal(request, ctx)
    if principal is None:
        return _to_login()
    try:
        view = _view(ctx, principal, study_id)
    except NotFound as error:
        return templates.TemplateResponse(
            request, "missing.html", {"principal": principal, "detail": error.detail}, status_code=404
        )
    return templates.TemplateResponse(request, "study.html", {"principal": principal, "view": view})


@router.get("/studies/{study_id}/body")
def study_body(request: Request, ctx: ContextDep, study_id: str, version: int = -1) -> Response:
    """The parts of a study's page that change; 204 if the page is up to date."""
    principal = _principal(request, ctx)
    if principal is None:
        raise Unauthorized("log in again")
    study, _ = studies.get_study(ctx, study_id, principal.scope)
    if study.version == version:
        return Response(status_code=204)
    return templates.TemplateResponse(request, "study_body.html", {"view": _view(ctx, principal, study_id)})


class Verb(StrEnum):
    """The actions of a study's buttons."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"


@router.post("/studies/{study_id}/{verb}")
def steer(request: Request, ctx: ContextDep, study_id: str, verb: Verb) -> Response:
    """Run a button's action and return to the page."""
    _require_same_origin(request)
    cookie = request.cookies.get(SESSION_COOKIE)
    principal = tokens.authenticate_session(ctx, cookie) if cookie else None
    if principal is None or principal.role not in (Role.ADMIN, Role.MEMBER):
        raise Forbidden(f"only members may {verb} a study")
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
    principal = _principal(request, ctx)
    if principal is None:
        return _to_login()
    entries, _ = tokens.read_audit(ctx, principal.scope, SHOWN_ENTRIES, None, None)
    return templates.TemplateResponse(
        request,
        "operation.html",
        {
            "principal": principal,
            "teams": teams.list_teams(ctx, principal.scope),
            "runners": teams.list_runners(ctx, principal.scope),
            "quarantined": [h for h in hosts.list_hosts(ctx) if h.quarantined_at is not None],
            "entries": entries,
        },
    )
