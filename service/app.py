"""Wire the server together and run it: ``python -m service.app``."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from anyio import to_thread
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

from . import __version__
from .api import catalog, events, groups, health, leases, reports, studies, teams, tokens, trials, webhooks
from .api.connections import SERVER_OPTIONS
from .api.dependencies import identify
from .api.errors import add_error_handlers
from .api.hub import EventHub
from .api.limits import RateLimits
from .api.metrics import Metrics
from .api.middleware import RequestMiddleware, current_request_id
from .api.openapi import document, operation_id
from .api.proxies import BehindProxy
from .context.aside import Processes
from .context.context import Clock, Context
from .dashboard import charts_api, explorer, new_study, pages, selection, shell, trial_page
from .dashboard import groups as group_pages
from .db.engine import Database
from .domain.records import Role
from .errors import ServiceError
from .search.optuna_policy import OptunaPolicy
from .server.bootstrap import embedded_tokens, prepare, prepare_database
from .server.chores import Chores
from .server.logs import set_up_logging
from .settings import Settings, explain
from .studies import plans
from .tenancy.tokens import DEFAULT_TEAM, create_token, ensure_team

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
        openapi_url=None,
        generate_unique_id_function=operation_id,
        lifespan=_background(ctx) if background else None,
    )
    metrics = Metrics()
    metrics.watch(ctx)
    ctx.observe_sampling = metrics.observe_sampling
    app.state.context = ctx
    app.state.metrics = metrics
    app.state.limits = RateLimits(ctx.settings.rate_limit)
    app.state.hub = EventHub(ctx)
    for module in (studies, groups, reports, trials, events, leases, tokens, teams, webhooks, catalog, charts_api):
        app.include_router(module.router, prefix=API)
    app.include_router(health.router)
    app.include_router(pages.router)
    app.include_router(trial_page.router)
    app.include_router(selection.router)
    app.include_router(explorer.router)
    app.include_router(new_study.router)
    app.include_router(group_pages.router)
    shell.mount_static(app)
    add_error_handlers(app)
    app.add_middleware(
        RequestMiddleware,
        metrics=metrics,
        max_body_bytes=ctx.settings.max_body_bytes,
        identify=lambda request: identify(request, ctx),
    )
    # Outermost: the others see the caller's own address, and paths without the proxy's prefix.
    app.add_middleware(BehindProxy, root_path=ctx.settings.root_path, trusted=ctx.settings.trusted_proxies)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


def _background(ctx: Context) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = REQUEST_THREADS
        chores, aside = Chores(ctx), Processes([plans.__name__])
        ctx.aside = aside
        aside.start()
        chores.start()
        try:
            yield
        finally:
            await run_in_threadpool(chores.stop)
            aside.close()

    return lifespan


program = typer.Typer(
    help="Run the API, or prepare its database.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@contextmanager
def _configured() -> Iterator[Context]:
    """The context of the environment's settings.

    Raises:
        SystemExit: the settings or the database are not right; the message says what.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        raise SystemExit(explain(error)) from None
    ctx = make_context(settings)
    try:
        yield ctx
    except OperationalError as error:
        raise SystemExit(f"The database does not answer: {error.orig}") from None
    except ServiceError as error:
        raise SystemExit(error.detail) from None
    finally:
        ctx.db.close()


@program.command()
def serve(
    embedded: Annotated[bool, typer.Option("--embedded", help="Make an embedded server's tokens.")] = False,
) -> None:
    """Run the API."""
    with _configured() as ctx:
        set_up_logging(ctx.settings.log_format, current_request_id.get)
        prepare_database(ctx)
        ensure_team(ctx, DEFAULT_TEAM)
        if embedded:
            embedded_tokens(ctx)
        uvicorn.run(
            create_app(ctx, background=True),
            host=ctx.settings.host,
            port=ctx.settings.port,
            timeout_graceful_shutdown=GRACE_SECONDS,
            **SERVER_OPTIONS,
        )


@program.command("create-token")
def create_token_command(
    name: Annotated[str, typer.Option(help="What the token is for.")],
    role: Annotated[Role, typer.Option(help="What it permits.")] = Role.MEMBER,
    team: Annotated[str, typer.Option(help="Its team, made if it does not exist.")] = DEFAULT_TEAM,
) -> None:
    """Make a token in the database and print its secret."""
    with _configured() as ctx:
        prepare_database(ctx)
        ensure_team(ctx, team)
        _, secret = create_token(ctx, team, name, role)
        print(secret)


@program.command("prepare")
def prepare_command(
    token: Annotated[list[str] | None, typer.Option(metavar="ROLE=FILE", help="A token's role and file.")] = None,
) -> None:
    """Upgrade the schema and make the tokens in files valid."""
    tokens = [_role_and_file(value) for value in token or []]
    with _configured() as ctx:
        prepare(ctx, tokens)


def _role_and_file(value: str) -> tuple[Role, Path]:
    role, separator, file = value.partition("=")
    if not separator or role not in list(Role):
        raise typer.BadParameter(f"give ROLE=FILE, with a role out of {', '.join(Role)}; got {value!r}")
    return Role(role), Path(file)


def main(argv: Sequence[str] | None = None) -> None:
    """``serve`` the API, ``prepare`` the database, or ``create-token`` in it.

    Raises:
        SystemExit: it failed; the message says why.
    """
    try:
        program(args=argv, prog_name="python -m service.app")
    except SystemExit as ended:
        if ended.code:
            raise


if __name__ == "__main__":
    main(sys.argv[1:])
