"""Teams, runners and the audit log on the wire."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ..domain.records import Role
from ..domain.study_spec import Name
from .wire import Sent, ShapeFields, Time, Wire

Weight = Annotated[float, Field(strict=True, gt=0, le=1_000_000)]
Count = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
Bytes = Annotated[int, Field(strict=True, ge=0, le=2**62)]
Gpus = Annotated[float, Field(strict=True, ge=0, le=1_000_000)]


class Quotas(Sent):
    """A team's share and quotas. What is left out stays; null lifts a quota."""

    weight: Weight = Field(default=1.0, description="Its share of the cluster, as against the other teams' weights.")
    max_running_trials: Count | None = None
    max_gpus: Gpus | None = None
    max_studies: Count | None = Field(default=None, description="Studies that have not ended.")
    max_storage_bytes: Bytes | None = None


class TeamRequest(Quotas):
    name: Name


class UsageOut(Wire):
    """A team's current use."""

    running_trials: int
    cpus: float
    gpus: float
    open_studies: int
    storage_bytes: int


class TeamOut(Wire):
    id: str
    name: str
    created_at: Time
    weight: float
    max_running_trials: int | None
    max_gpus: float | None
    max_studies: int | None
    max_storage_bytes: int | None


class TeamWithUsage(TeamOut):
    usage: UsageOut


class RunnerOut(ShapeFields, Wire):
    name: str
    team_id: str | None
    warm: list[str]
    busy: bool
    host: str | None
    first_seen_at: Time
    last_seen_at: Time


class HostOut(Wire):
    name: str
    failures: int = Field(description="Failed attempts in a row, of studies that have finished trials.")
    reason: str | None = Field(description="The last of them.")
    quarantined_at: Time | None = Field(description="Since then its runners are given nothing.")


class HostRelease(Sent):
    """A host whose quarantine is to end."""

    host: Name


class AuditOut(Wire):
    id: str
    at: Time
    team_id: str | None
    token_id: str
    token: str
    role: Role
    request_id: str
    action: str
    target: str
    detail: dict[str, Any]
