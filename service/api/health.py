"""Liveness and readiness; no token needed."""

from __future__ import annotations

from fastapi import APIRouter

from ..errors import Unavailable
from ..schemas.common import Problem
from .dependencies import ContextDep

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
        raise Unavailable("the database schema is not this server's; run: alembic upgrade head")
    return {"status": "ready"}
