"""What every page of the dashboard shares: templates, static files, and who is looking."""

from __future__ import annotations

import gzip
import hashlib
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fastapi_offline
import plotly
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from ..api.dependencies import SESSION_COOKIE, get_principal
from ..api.proxies import prefix_of
from ..context.context import Context
from ..domain.records import Principal, Role
from ..domain.statistics import Estimate
from ..domain.structure import sizes_told
from ..errors import Forbidden, Unauthorized
from ..results.sentences import duration
from ..tenancy import tokens

HERE = Path(__file__).parent
# The package's pages are its own affair; what is used of it is the Swagger UI that it carries.
SWAGGER_UI = Path(fastapi_offline.__file__).parent / "static"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def _digest(*files: Path) -> str:
    """A short name of files' contents: an address with it may be kept for ever."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


ASSETS_VERSION = _digest(*sorted((HERE / "static").iterdir()))
PLOTLY_VERSION = _digest(PLOTLY)


def _shared(request: Request) -> dict[str, Any]:
    theme = request.cookies.get("theme")
    return {
        "prefix": prefix_of(request),
        "assets_version": ASSETS_VERSION,
        "plotly_version": PLOTLY_VERSION,
        "theme": theme if theme in ("light", "dark") else None,
    }


templates = Jinja2Templates(HERE / "templates", context_processors=[_shared])


class _Kept(StaticFiles):
    """Files whose address has a digest of their contents: a browser asks for them once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


@lru_cache(maxsize=2)
def _plotly(*, packed: bool) -> bytes:
    content = PLOTLY.read_bytes()
    return gzip.compress(content, 9) if packed else content


def mount_static(app: FastAPI) -> None:
    """Serve our style sheet and module, and Plotly from its own package."""

    @app.get("/static/plotly.min.js", include_in_schema=False)
    def plotly_js(request: Request) -> Response:
        # A year, where the address has the version of the file.
        kept = 31_536_000 if request.query_params.get("v") == PLOTLY_VERSION else 86_400
        headers = {"Cache-Control": f"public, max-age={kept}", "Vary": "Accept-Encoding"}
        packed = "gzip" in request.headers.get("accept-encoding", "")
        if packed:
            headers["Content-Encoding"] = "gzip"
        return Response(_plotly(packed=packed), media_type="text/javascript", headers=headers)

    # Modules import each other by relative addresses, so the version is a folder.
    app.mount(f"/static/{ASSETS_VERSION}", _Kept(directory=HERE / "static"), name="assets")
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


def _ago(seconds: float) -> str:
    """An age in words."""
    if seconds < 90:
        return "just now"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min ago"
    if seconds < 129_600:
        return f"{seconds / 3600:.0f} h ago"
    return f"{seconds / 86_400:.0f} days ago"


def _when(value: datetime | None) -> str:
    return "–" if value is None else value.strftime("%Y-%m-%d %H:%M:%S UTC")


templates.env.globals["structure"] = sizes_told
templates.env.filters |= {
    "number": _number,
    "signed": _signed,
    "parameter": _parameter,
    "when": _when,
    "duration": duration,
    "ago": _ago,
}


def principal_of(request: Request, ctx: Context) -> Principal | None:
    """Who is looking; ``None`` before the login.

    Raises:
        Forbidden: with a token for runners.
    """
    try:
        principal = get_principal(request, ctx)
    except Unauthorized:
        return None
    if principal.role.runs_trials:
        raise Forbidden("a worker's token cannot open the dashboard")
    return principal


def may_write(principal: Principal) -> bool:
    """Whether pages offer actions: to members who have logged in."""
    return principal.role in (Role.ADMIN, Role.MEMBER) and bool(principal.token_id)


def to_login() -> RedirectResponse:
    """Where somebody goes who is not logged in."""
    return RedirectResponse("/login", status_code=303)


def require_same_origin(request: Request) -> None:
    """Forms are taken from our own pages only: the browser says where a request comes from.

    Raises:
        Forbidden: another site sent it.
    """
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise Forbidden("this form was sent from another site")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("this form was sent from another site")


def require_member(request: Request, ctx: Context, what: str) -> Principal:
    """The member whose browser sent a form.

    Raises:
        Forbidden: it is none.
    """
    cookie = request.cookies.get(SESSION_COOKIE)
    principal = tokens.authenticate_session(ctx, cookie) if cookie else None
    if principal is None or principal.role not in (Role.ADMIN, Role.MEMBER):
        raise Forbidden(f"only members may {what}")
    return principal
