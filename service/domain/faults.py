"""Faults of a document's form, with their places."""

from __future__ import annotations

from pydantic import ValidationError

from ..errors import Fault


def schema_faults(error: ValidationError) -> list[Fault]:
    """Pydantic's findings as faults with JSON pointers."""
    faults = []
    for found in error.errors(include_url=False, include_context=False):
        # The form of a space (as "<range>") and the alternatives of a plain union are no places in the document.
        parts = [str(part) for part in found["loc"] if not _is_union_branch(part)]
        message = found["msg"].removeprefix("Value error, ")
        if found["type"] == "extra_forbidden":
            message = "unknown key; see GET /docs for the keys there are"
        faults.append(Fault("#" + "".join(f"/{part}" for part in parts), message))
    return faults


def _is_union_branch(part: int | str) -> bool:
    return isinstance(part, str) and (part.startswith("<") or "[" in part or part == "constrained-str")
