"""Tokens on the wire. A secret is sent once, when its token is made."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..domain.records import Role
from .common import Sent, Time, Wire


class TokenRequest(Sent):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    role: Role
    team: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, description="The caller's own team by default."
    )


class TokenOut(Wire):
    id: str
    team: str
    name: str
    role: Role
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None
    last_used_at: Time | None


class TokenCreated(TokenOut):
    token: str
