"""Teams with their quotas, the workers that serve them, and the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ..leases import hosts
from ..schemas.teams import (
    AuditOut,
    HostOut,
    HostRelease,
    Quotas,
    RunnerOut,
    TeamOut,
    TeamRequest,
    TeamWithUsage,
    UsageOut,
)
from ..schemas.wire import Page
from ..tenancy import teams, tokens
from .dependencies import Admin, ContextDep, Cursor, Id, IdempotencyKey, Limit, Reader, problems
from .idempotency import IdempotentRoute

router = APIRouter(tags=["operation"], route_class=IdempotentRoute)


@router.get("/teams", responses=problems())
def list_teams(ctx: ContextDep, principal: Reader) -> Page[TeamWithUsage]:
    """List the caller's team, or all teams for an admin, with quotas and current use."""
    return Page(
        items=[
            TeamWithUsage(**dict(TeamOut.model_validate(team)), usage=UsageOut.model_validate(usage))
            for team, usage in teams.list_teams(ctx, principal.scope)
        ]
    )


@router.post("/teams", status_code=201, responses=problems(409))
def create_team(
    ctx: ContextDep, principal: Admin, body: TeamRequest, idempotency_key: IdempotencyKey = None
) -> TeamOut:
    """Create a team."""
    values = body.model_dump(exclude={"name"}, exclude_unset=True)
    return TeamOut.model_validate(teams.create_team(ctx, principal, body.name, values))


@router.patch("/teams/{team_id}", responses=problems(404))
def update_team(ctx: ContextDep, principal: Admin, team_id: Id, body: Quotas) -> TeamOut:
    """Change a team's weight and quotas. Does not affect running trials."""
    return TeamOut.model_validate(teams.update_team(ctx, principal, team_id, body.model_dump(exclude_unset=True)))


@router.get("/workers", responses=problems())
def list_workers(ctx: ContextDep, principal: Reader) -> Page[RunnerOut]:
    """List the runners of the caller's team, or all for an admin, with the time each was last seen."""
    return Page(
        items=[
            RunnerOut(
                name=r.name,
                team_id=r.team_id,
                **r.shape.as_dict(),
                warm=r.warm,
                busy=r.lease_id is not None,
                host=r.host,
                first_seen_at=r.first_seen_at,
                last_seen_at=r.last_seen_at,
            )
            for r in teams.list_runners(ctx, principal.scope)
        ]
    )


@router.get("/hosts", responses=problems())
def list_hosts(ctx: ContextDep, principal: Admin) -> Page[HostOut]:
    """List hosts with failures. A quarantined host gets no trials until it is released."""
    return Page(items=[HostOut.model_validate(h) for h in hosts.list_hosts(ctx)])


@router.post("/hosts/release", responses=problems(404))
def release_host(
    ctx: ContextDep, principal: Admin, body: HostRelease, idempotency_key: IdempotencyKey = None
) -> HostOut:
    """End a host's quarantine."""
    return HostOut.model_validate(hosts.release_host(ctx, principal, body.host))


@router.get("/audit", responses=problems())
def read_audit(
    ctx: ContextDep,
    principal: Reader,
    limit: Limit = 50,
    cursor: Cursor = None,
    target: Annotated[
        str | None, Query(max_length=128, pattern=r"^[A-Za-z0-9_-]+$", description="Id of a thing.")
    ] = None,
) -> Page[AuditOut]:
    """List the changes in the caller's team, or in all teams for an admin, newest first."""
    found, next_cursor = tokens.read_audit(ctx, principal.scope, limit, cursor, target)
    return Page(items=[AuditOut.model_validate(e) for e in found], next_cursor=next_cursor)
