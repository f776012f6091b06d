"""Errors in the form of a document, with their locations."""

from __future__ import annotations

from pydantic import ValidationError

from ..errors import Fault


def schema_faults(
    error: ValidationError, unknown_key: str = "unknown key; GET /docs lists the valid keys"
) -> list[Fault]:
    """Convert Pydantic's errors to faults with JSON pointers; ``unknown_key`` is the message for one."""
    faults = []
    for found in error.errors(include_url=False, include_context=False):
        # Tags of a space's form (such as "<range>") and branches of a plain union are not locations in the document.
        parts = [str(part) for part in found["loc"] if not _is_union_branch(part)]
        message = found["msg"].removeprefix("Value error, ")
        if found["type"] == "extra_forbidden":
            message = unknown_key
        faults.append(Fault("#" + "".join(f"/{part}" for part in parts), message))
    return faults


def _is_union_branch(part: int | str) -> bool:
    return isinstance(part, str) and (part.startswith("<") or "[" in part or part == "constrained-str")
