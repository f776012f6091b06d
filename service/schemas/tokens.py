"""Tokens on the wire. A secret is sent once, when its token is made."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, Field

from ..domain.records import Role
from ..domain.study_spec import Name
from .wire import Sent, Time, Wire


class TokenRequest(Sent):
    name: Name
    role: Role
    team: Name | None = Field(default=None, description="The caller's own team by default.")
    expires_at: AwareDatetime | None = Field(default=None, description="RFC 3339; never by default.")


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


class RotationRequest(Sent):
    """How long the old secret goes on being valid."""

    grace_seconds: Annotated[float, Field(strict=True, ge=0, le=30 * 86_400)] = 3600
