"""What a trial used, as its runner measured it: bounded values that every database, page and export can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Measurements that are added up and drawn: never negative, never text.
NUMBERS = frozenset({
    *("seconds", "gpu_seconds", "train_seconds", "swap_seconds", "step_seconds", "steps", "threads", "processes"),
    *("samples_per_second", "tokens_per_second", "artifact_bytes", "peak_memory_bytes", "peak_device_memory_bytes"),
    *("frozen_layers",),
})  # fmt: skip
MOST_ENTRIES = 100
MOST_CHARACTERS = 20_000
_LONGEST_NAME = 100
# Integers that JSON, doubles and both databases hold exactly.
LARGEST = 2**53


def resource_faults(resources: Mapping[Any, Any]) -> list[str]:
    """What is wrong with a trial's resources; empty if nothing is."""
    if len(resources) > MOST_ENTRIES:
        return [f"there are {len(resources)} entries, more than {MOST_ENTRIES}"]
    return [f"{name!r} {fault}" for name, value in resources.items() if (fault := _fault(name, value)) is not None]


def _fault(name: Any, value: Any, *, inner: bool = False) -> str | None:
    if not is_plain(name) or not 0 < len(name) <= _LONGEST_NAME:
        return "is no name"
    if name in NUMBERS and not inner:
        good = not isinstance(value, bool) and isinstance(value, int | float)
        return None if good and _in_bounds(value) and value >= 0 else f"is not a number between 0 and {LARGEST}"
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return None if _in_bounds(value) else f"is not a finite number of at most {LARGEST}"
    if isinstance(value, str):
        return None if len(value) <= MOST_CHARACTERS and is_plain(value) else "is no plain text, or is too long"
    if isinstance(value, dict) and not inner:
        if len(value) > MOST_ENTRIES:
            return f"has more than {MOST_ENTRIES} entries"
        return next((f for key, each in value.items() if (f := _fault(key, each, inner=True)) is not None), None)
    return "is no number, text, or object of those"


def _in_bounds(value: float) -> bool:
    # Integers first: huge ones do not convert.
    return abs(value) <= LARGEST if isinstance(value, int) else math.isfinite(value) and abs(value) <= LARGEST


def is_plain(value: Any) -> bool:
    """Whether a value is text without NUL and lone surrogates, which PostgreSQL and UTF-8 do not hold."""
    return isinstance(value, str) and "\x00" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
