"""Liveness, readiness and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from ..domain.records import Role
from ..errors import Forbidden, Unavailable
from ..schemas.wire import Problem
from ..settings import is_loopback
from .dependencies import ContextDep, bearer_token, identify

router = APIRouter(tags=["operation"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": Problem}})
def readyz(ctx: ContextDep) -> dict[str, str]:
    """The database answers and its schema is this server's."""
    ctx.db.ping()
    if not ctx.db.is_current():
        raise Unavailable("the database schema is not this server's; run: cdka db upgrade")
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, include_in_schema=False)
def metrics(request: Request, ctx: ContextDep) -> Response:
    """Metrics for Prometheus, for loopback and for tokens of admins and viewers.

    Raises:
        Forbidden: a token of another role.
    """
    local = request.client is not None and is_loopback(request.client.host)
    # Behind a local proxy every caller is loopback; forwarding headers tell.
    if not local or "x-forwarded-for" in request.headers or bearer_token(request) is not None:
        caller = identify(request, ctx)
        if caller.role not in (Role.ADMIN, Role.VIEWER):
            raise Forbidden("metrics cover all teams: use an admin's token, or a viewer's token of any team")
    text = request.app.state.metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
