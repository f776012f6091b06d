"""Tokens: created, listed, rotated and revoked by admins."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter

from ..schemas.tokens import RotationRequest, TokenCreated, TokenOut, TokenRequest
from ..schemas.wire import Page
from ..tenancy import tokens
from .dependencies import Admin, ContextDep, Id, IdempotencyKey, problems
from .idempotency import IdempotentRoute

router = APIRouter(tags=["operation"], route_class=IdempotentRoute)


@router.post("/tokens", status_code=201, responses=problems(404))
def create_token(
    ctx: ContextDep, principal: Admin, body: TokenRequest, idempotency_key: IdempotencyKey = None
) -> TokenCreated:
    """Create a token. Only this response contains its secret."""
    team = body.team or principal.team
    token, secret = tokens.create_token(ctx, team, body.name, body.role, body.expires_at, principal)
    return TokenCreated(**dict(TokenOut.model_validate(token)), token=secret)


@router.get("/tokens", responses=problems())
def list_tokens(ctx: ContextDep, principal: Admin) -> Page[TokenOut]:
    """List tokens without their secrets."""
    return Page(items=[TokenOut.model_validate(t) for t in tokens.list_tokens(ctx, None)])


@router.post("/tokens/{token_id}/rotate", status_code=201, responses=problems(404, 409))
def rotate_token(
    ctx: ContextDep, principal: Admin, token_id: Id, body: RotationRequest, idempotency_key: IdempotencyKey = None
) -> TokenCreated:
    """Create a new secret for a token. The old one stays valid for a grace period."""
    token, secret = tokens.rotate_token(ctx, principal, token_id, timedelta(seconds=body.grace_seconds))
    return TokenCreated(**dict(TokenOut.model_validate(token)), token=secret)


@router.delete("/tokens/{token_id}", status_code=204, responses=problems(404))
def revoke_token(ctx: ContextDep, principal: Admin, token_id: Id) -> None:
    """Revoke a token immediately."""
    tokens.revoke_token(ctx, principal, token_id)
