"""The error tree: every refusal carries its status and a stable type, rendered as problem+json (RFC 9457).

ServiceError
├── Unauthorized         401  no token, or one that is not valid
├── Forbidden            403  the token's role does not allow the call
├── NotFound             404  no such thing, or not in this team
├── Conflict             409  the state of the resource forbids the call
│   ├── LeaseLost        409  the lease is no longer held; nothing was changed
│   ├── InputsChanged    409  the study began with other data or another base model
│   └── QuotaExceeded    409  the team's quota is used up
├── Changed              412  the resource is not what If-Match says
├── TooSlow              408  the body does not come in time
├── TooLarge             413  the body is larger than the server takes
├── InvalidRequest       422  the request is wrong; ``faults`` names every place
│   ├── InvalidStudy     422
│   └── KeyReused        422  the Idempotency-Key came with another request before
├── TooMany              429  the caller asks too often: wait ``retry_after`` seconds
└── Unavailable          503  the server cannot answer now: retry
    ├── Overloaded       503  every database connection is in use
    └── Contention       503  a conflict with another writer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

TYPE_PREFIX = "urn:cdka:problem:"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a request: its place (a JSON pointer fragment, RFC 6901), and what would be right."""

    pointer: str
    detail: str


class ServiceError(Exception):
    """Base of every error that crosses the interface.

    Args:
        detail: what is wrong and what would be right.
        faults: every place that is wrong, if there are several.
    """

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.faults = tuple(faults)

    @property
    def type(self) -> str:
        """The stable URI of this kind of problem."""
        return TYPE_PREFIX + self.slug

    def problem(self) -> dict[str, Any]:
        """The problem+json body."""
        body: dict[str, Any] = {"type": self.type, "title": self.title, "status": self.status, "detail": self.detail}
        if self.faults:
            body["errors"] = [{"pointer": f.pointer, "detail": f.detail} for f in self.faults]
        return body


class Unauthorized(ServiceError):
    status, slug, title = 401, "unauthorized", "A valid token is needed"


class Forbidden(ServiceError):
    status, slug, title = 403, "forbidden", "The token's role does not allow this"


class NotFound(ServiceError):
    status, slug, title = 404, "not-found", "Not found"


class Conflict(ServiceError):
    status, slug, title = 409, "conflict", "Not possible in this state"


class LeaseLost(Conflict):
    slug, title = "lease-lost", "The lease is no longer held"


class InputsChanged(Conflict):
    slug, title = "inputs-changed", "The study began with other data or another base model"


class QuotaExceeded(Conflict):
    slug, title = "quota-exceeded", "The team's quota is used up"


class Changed(ServiceError):
    status, slug, title = 412, "changed", "The resource has changed"


class TooSlow(ServiceError):
    status, slug, title = 408, "too-slow", "The request did not come in time"


class TooLarge(ServiceError):
    status, slug, title = 413, "too-large", "The request is too large"


class InvalidRequest(ServiceError):
    status, slug, title = 422, "invalid-request", "The request is not valid"


class InvalidStudy(InvalidRequest):
    slug, title = "invalid-study", "The study is not valid"


class KeyReused(InvalidRequest):
    slug, title = "idempotency-key-reused", "The idempotency key belongs to another request"


class TooMany(ServiceError):
    """``retry_after`` is the number of seconds to wait."""

    status, slug, title = 429, "too-many-requests", "Too many requests"

    def __init__(self, detail: str, faults: Sequence[Fault] = (), retry_after: int = 1) -> None:
        super().__init__(detail, faults)
        self.retry_after = retry_after


class Unavailable(ServiceError):
    status, slug, title = 503, "unavailable", "Not available now"


class Overloaded(Unavailable):
    slug, title = "overloaded", "The server is busy"


class Contention(Unavailable):
    slug, title = "contention", "Another writer was in the way"


def _tree(root: type[ServiceError]) -> list[type[ServiceError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


def from_problem(body: dict[str, Any], status: int) -> ServiceError:
    """The error class of a problem+json body; an unknown type becomes the nearest class of its status."""
    faults = [Fault(str(e.get("pointer", "#")), str(e.get("detail", ""))) for e in body.get("errors") or []]
    slug = str(body.get("type", "")).removeprefix(TYPE_PREFIX)
    classes = _tree(ServiceError)
    chosen = next((c for c in classes if c.slug == slug), None)
    chosen = chosen or next((c for c in classes if c.status == status), ServiceError)
    return chosen(str(body.get("detail") or body.get("title") or f"status {status}"), faults)
