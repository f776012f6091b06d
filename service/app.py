"""Wires the server together, and runs it: ``python -m service.app``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

from . import __version__
from .api import health, leases, studies, tokens, trials
from .api.errors import add_error_handlers
from .dashboard import charts_api, pages
from .db.engine import Database
from .domain.records import Role
from .domain.study_spec import StudySpec
from .errors import ServiceError
from .scheduling.access import DEFAULT_TEAM, authenticate, create_token, ensure_team
from .scheduling.context import Clock, Context
from .search.optuna_policy import OptunaPolicy
from .settings import Settings

API = "/api/v1"
# Plotly sets styles on elements and exports pictures as blobs; nothing else may come from anywhere.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# FastAPI's /docs loads its page from elsewhere by design; all our own pages obey the policy.
_DOCS = ("/docs", "/redoc")


def utc_now() -> datetime:
    """The server's clock."""
    return datetime.now(UTC)


def make_context(settings: Settings, clock: Clock = utc_now) -> Context:
    """The use cases' context for these settings."""
    policy = OptunaPolicy()
    return Context(Database(settings.database_url), settings, clock, policy, policy)


def create_app(ctx: Context) -> FastAPI:
    """The ASGI application on a context whose schema is up to date."""
    app = FastAPI(title="CDKA search service", version=__version__)
    app.state.context = ctx
    for module in (studies, trials, leases, tokens, charts_api):
        app.include_router(module.router, prefix=API)
    app.include_router(health.router)
    app.include_router(pages.router)
    pages.mount_static(app)
    add_error_handlers(app)
    app.middleware("http")(_secure)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


async def _secure(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call_next(request)
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    if not request.url.path.startswith(_DOCS):
        response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    if not request.url.path.startswith("/static/"):
        response.headers.setdefault("Cache-Control", "no-store")
    return response


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        # POST /studies takes its body raw, to report every fault at once; its schema is documented all the same.
        spec = StudySpec.model_json_schema(ref_template="#/components/schemas/{model}")
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        for name, definition in spec.pop("$defs", {}).items():
            components.setdefault(name, definition)
        components["StudySpec"] = spec
        app.openapi_schema = schema
    return app.openapi_schema


def prepare_database(ctx: Context) -> None:
    """Bring an embedded SQLite schema up to date; refuse an outdated PostgreSQL one.

    Raises:
        SystemExit: with the command to run.
    """
    if ctx.db.is_sqlite:
        ctx.db.upgrade()
    elif not ctx.db.is_current():
        raise SystemExit(
            "The database schema is not this server's. Back it up, then run:\n"
            "    alembic -c alembic.ini upgrade head    (or: python -m service.app upgrade)"
        )


def embedded_tokens(ctx: Context) -> None:
    """Make the tokens of an embedded server, in files that only their owner can read, unless valid ones are there."""
    ensure_team(ctx, DEFAULT_TEAM)
    for role in (Role.ADMIN, Role.WORKER):
        file = ctx.settings.home / f"{role}-token"
        if file.exists() and _is_valid(ctx, file.read_text().strip()):
            continue
        _, secret = create_token(ctx, DEFAULT_TEAM, f"embedded {role}", role)
        write_secret(file, secret)


def _is_valid(ctx: Context, secret: str) -> bool:
    try:
        authenticate(ctx, secret)
    except ServiceError:
        return False
    return True


def write_secret(file: Path, secret: str) -> None:
    """Write a secret to a file that only its owner may read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secret + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """``serve`` the API, ``upgrade`` the schema, or ``create-token`` straight in the database."""
    parser = argparse.ArgumentParser(prog="python -m service.app", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the API")
    serve.add_argument("--embedded", action="store_true", help="make the tokens of an embedded server")
    commands.add_parser("upgrade", help="bring the database schema up to date")
    token = commands.add_parser("create-token", help="make a token in the database and print its secret")
    token.add_argument("--name", required=True)
    token.add_argument("--role", choices=[r.value for r in Role], default=Role.MEMBER.value)
    token.add_argument("--team", default=DEFAULT_TEAM)
    options = parser.parse_args(argv)
    try:
        settings = Settings()
    except ValidationError as error:
        faults = "\n".join(f"  {_variable(e['loc'])}: {e['msg']}" for e in error.errors())
        raise SystemExit(f"The settings are not valid:\n{faults}") from None
    ctx = make_context(settings)
    try:
        _run(options, ctx)
    except OperationalError as error:
        raise SystemExit(f"The database does not answer: {error.orig}") from None


def _variable(location: tuple[int | str, ...]) -> str:
    return f"CDKA_{str(location[0]).upper()}" if location else "CDKA_*"


def _run(options: argparse.Namespace, ctx: Context) -> None:
    if options.command == "upgrade":
        ctx.db.upgrade()
        return
    prepare_database(ctx)
    if options.command == "create-token":
        ensure_team(ctx, options.team)
        _, secret = create_token(ctx, options.team, options.name, Role(options.role))
        print(secret)
        return
    if options.embedded:
        embedded_tokens(ctx)
    app = create_app(ctx)
    uvicorn.run(app, host=ctx.settings.host, port=ctx.settings.port, log_level="warning", server_header=False)


if __name__ == "__main__":
    main(sys.argv[1:])
