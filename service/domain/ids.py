"""Identifiers that sort by time of creation (RFC 9562, UUID version 7)."""

from __future__ import annotations

import secrets
from datetime import datetime
from threading import Lock

_lock = Lock()
_last = (-1, 0)  # The milliseconds and the low 74 bits of this process's latest identifier.


def new_id(now: datetime) -> str:
    """32 hexadecimal digits: milliseconds since 1970, then 74 random bits.

    Identifiers that one process makes in the same millisecond sort in the order in which they were made
    (RFC 9562, section 6.2, method 2: the low bits grow by a random step).
    """
    global _last
    milliseconds = int(now.timestamp() * 1000)
    with _lock:
        latest, low = _last
        # A first value below 2^73 leaves room for 2^41 steps.
        low = low + 1 + secrets.randbits(32) if latest == milliseconds else secrets.randbits(73)
        _last = (milliseconds, low)
    high = (milliseconds << 16) | (0x7 << 12) | (low >> 62)
    return f"{high:016x}{(0b10 << 62) | (low & (1 << 62) - 1):016x}"
