"""Tokens: made, listed and revoked by admins."""

from __future__ import annotations

from fastapi import APIRouter

from ..scheduling import access
from ..schemas.common import Page
from ..schemas.tokens import TokenCreated, TokenOut, TokenRequest
from .dependencies import Admin, ContextDep, problems

router = APIRouter(tags=["operation"])


@router.post("/tokens", status_code=201, responses=problems(404))
def create_token(ctx: ContextDep, principal: Admin, body: TokenRequest) -> TokenCreated:
    """Make a token. Its secret is in this answer and nowhere else."""
    token, secret = access.create_token(ctx, body.team or principal.team, body.name, body.role)
    return TokenCreated(**dict(TokenOut.model_validate(token)), token=secret)


@router.get("/tokens", responses=problems())
def list_tokens(ctx: ContextDep, principal: Admin) -> Page[TokenOut]:
    """Every token, without its secret."""
    return Page(items=[TokenOut.model_validate(t) for t in access.list_tokens(ctx, None)])


@router.delete("/tokens/{token_id}", status_code=204, responses=problems(404))
def revoke_token(ctx: ContextDep, principal: Admin, token_id: str) -> None:
    """Make a token invalid at once."""
    access.revoke_token(ctx, token_id)
