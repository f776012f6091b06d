"""Wire the server together and run it: ``python -m service.app``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from anyio import to_thread
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.utils import get_openapi
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

from . import __version__
from .api import catalog, events, health, leases, studies, teams, tokens, trials, webhooks
from .api.errors import add_error_handlers
from .api.hub import EventHub
from .api.limits import RateLimits
from .api.metrics import Metrics
from .api.middleware import RequestMiddleware, current_request_id
from .context.context import Clock, Context
from .dashboard import charts_api, pages
from .db.engine import Database
from .domain.records import Role
from .domain.study_spec import StudySpec
from .errors import ServiceError
from .schemas.common import Problem
from .search.optuna_policy import OptunaPolicy
from .server.chores import Chores
from .server.logs import set_up_logging
from .settings import Settings, explain
from .tenancy.tokens import DEFAULT_TEAM, adopt_token, authenticate, create_token, ensure_team

API = "/api/v1"
# Seconds that streams and slow requests get to end at shutdown.
GRACE_SECONDS = 5
# Threads of requests. Those that wait for SQLite's one writer hold one each, so there are more than anyio's 40.
REQUEST_THREADS = 128


def utc_now() -> datetime:
    """The server's clock."""
    return datetime.now(UTC)


def make_context(settings: Settings, clock: Clock = utc_now, elapsed: Callable[[], float] = time.monotonic) -> Context:
    """The use cases' context for these settings."""
    policy = OptunaPolicy()
    return Context(Database(settings.database_url), settings, clock, policy, policy, elapsed)


def create_app(ctx: Context, *, background: bool = False) -> FastAPI:
    """The ASGI application on a context whose schema is up to date.

    Args:
        ctx: what the use cases work on.
        background: whether this process also enforces limits, purges studies and sends webhooks.
    """
    app = FastAPI(
        title="CDKA search service",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=_background(ctx) if background else None,
    )
    metrics = Metrics()
    metrics.watch(ctx)
    ctx.observe_sampling = metrics.observe_sampling
    app.state.context = ctx
    app.state.metrics = metrics
    app.state.limits = RateLimits(ctx.settings.rate_limit)
    app.state.hub = EventHub(ctx)
    for module in (studies, trials, events, leases, tokens, teams, webhooks, catalog, charts_api):
        app.include_router(module.router, prefix=API)
    app.include_router(health.router)
    app.include_router(pages.router)
    pages.mount_static(app)
    add_error_handlers(app)
    app.add_middleware(RequestMiddleware, metrics=metrics, max_body_bytes=ctx.settings.max_body_bytes)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


def _background(ctx: Context) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = REQUEST_THREADS
        chores = Chores(ctx)
        chores.start()
        try:
            yield
        finally:
            await run_in_threadpool(chores.stop)

    return lifespan


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        # POST /studies reads the raw body, to report every fault at once; its schema is documented here.
        spec = StudySpec.model_json_schema(ref_template="#/components/schemas/{model}")
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        for name, definition in spec.pop("$defs", {}).items():
            components.setdefault(name, definition)
        components["StudySpec"] = spec
        components["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        components |= components["Problem"].pop("$defs", {})
        app.openapi_schema = schema
    return app.openapi_schema


def prepare_database(ctx: Context) -> None:
    """Upgrade an embedded SQLite schema; reject an outdated PostgreSQL schema.

    Raises:
        SystemExit: with the command to run.
    """
    if ctx.db.is_sqlite:
        ctx.db.upgrade()
    elif not ctx.db.is_current():
        raise SystemExit(
            f"The database schema is at revision {ctx.db.revision() or 'none'}, this server's is {ctx.db.newest()}.\n"
            "Back it up, then upgrade it:\n    cdka db backup FILE\n    cdka db upgrade"
        )


def embedded_tokens(ctx: Context) -> None:
    """Create the tokens of an embedded server in files that only their owner can read, unless valid ones exist."""
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
    """Write a secret to a file that only its owner can read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secret + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """``serve`` the API, or ``create-token`` in the database."""
    parser = argparse.ArgumentParser(prog="python -m service.app", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the API")
    serve.add_argument("--embedded", action="store_true", help="make the tokens of an embedded server")
    token = commands.add_parser("create-token", help="make a token in the database and print its secret")
    token.add_argument("--name", required=True)
    token.add_argument("--role", choices=[r.value for r in Role], default=Role.MEMBER.value)
    token.add_argument("--team", default=DEFAULT_TEAM)
    prepare = commands.add_parser("prepare", help="upgrade the schema and make the tokens in files valid")
    prepare.add_argument("--token", action="append", default=[], metavar="ROLE=FILE", type=_role_and_file)
    options = parser.parse_args(argv)
    try:
        settings = Settings()
    except ValidationError as error:
        raise SystemExit(explain(error)) from None
    ctx = make_context(settings)
    try:
        _run(options, ctx)
    except OperationalError as error:
        raise SystemExit(f"The database does not answer: {error.orig}") from None
    except ServiceError as error:
        raise SystemExit(error.detail) from None
    finally:
        ctx.db.close()


def _role_and_file(value: str) -> tuple[Role, Path]:
    role, separator, file = value.partition("=")
    if not separator or role not in list(Role):
        raise argparse.ArgumentTypeError(f"ROLE=FILE, with a role out of {', '.join(Role)}")
    return Role(role), Path(file)


def _prepare(ctx: Context, tokens: Sequence[tuple[Role, Path]]) -> None:
    before = ctx.db.revision()
    ctx.db.upgrade()
    print(f"the schema is at revision {ctx.db.revision()} (was: {before or 'none'})")
    ensure_team(ctx, DEFAULT_TEAM)
    for role, file in tokens:
        is_new = adopt_token(ctx, DEFAULT_TEAM, f"deployed {role}", role, _secret(file))
        print(f"the {role} token in {file} is valid {'now' if is_new else 'already'}")


def _secret(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise SystemExit(f"The token file {file} cannot be read: {error.strerror}") from None


def _run(options: argparse.Namespace, ctx: Context) -> None:
    if options.command == "prepare":
        _prepare(ctx, options.token)
        return
    if options.command == "create-token":
        prepare_database(ctx)
        ensure_team(ctx, options.team)
        _, secret = create_token(ctx, options.team, options.name, Role(options.role))
        print(secret)
        return
    set_up_logging(ctx.settings.log_format, current_request_id.get)
    prepare_database(ctx)
    ensure_team(ctx, DEFAULT_TEAM)
    if options.embedded:
        embedded_tokens(ctx)
    uvicorn.run(
        create_app(ctx, background=True),
        host=ctx.settings.host,
        port=ctx.settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
