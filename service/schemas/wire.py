"""Lists and problems."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from ..domain.shape import Shape
from ..domain.vocabulary import PLAIN, Name

Item = TypeVar("Item")


def _rfc3339(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# RFC 3339, UTC.
Time = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str, when_used="json")]


class Wire(BaseModel):
    """Base of what the server sends; read from domain records by attribute."""

    model_config = ConfigDict(from_attributes=True)


class Sent(BaseModel):
    """Base of what callers send; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


def without_control(value: str) -> str:
    """Text without control characters but line breaks and tabs, which databases and terminals would stumble over."""
    return "".join(c for c in value if c >= " " or c in "\n\t")


class ShapeFields(BaseModel):
    """What a trial holds, all its processes together."""

    cpus: Annotated[float, Field(strict=True, ge=0, le=4096)] = 1.0
    gpus: Annotated[float, Field(strict=True, ge=0, le=1024)] = 0.0
    memory_gib: Annotated[float, Field(strict=True, ge=0, le=1e6)] = 0.0
    accelerator_type: Annotated[str, Field(max_length=200, pattern=PLAIN)] = ""
    custom: Annotated[dict[Name, Annotated[float, Field(strict=True, ge=0, le=1e9)]], Field(max_length=100)] = {}
    processes: Annotated[int, Field(strict=True, ge=1, le=1024)] = 1

    @property
    def shape(self) -> Shape:
        """These fields as scheduling compares them."""
        return Shape.of({name: getattr(self, name) for name in ShapeFields.model_fields})


class Page(Wire, Generic[Item]):
    """A list: ``next_cursor`` is null on the last page."""

    items: list[Item]
    next_cursor: str | None = None


class ProblemFault(Wire):
    pointer: str = Field(description="JSON pointer fragment (RFC 6901) of the faulty place.")
    detail: str


class Problem(Wire):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:cdka:problem:not-found"])
    title: str
    status: int
    detail: str
    errors: list[ProblemFault] = []
