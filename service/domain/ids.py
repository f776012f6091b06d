"""Identifiers that sort by time of creation (RFC 9562, UUID version 7)."""

from __future__ import annotations

import secrets
from datetime import datetime


def new_id(now: datetime) -> str:
    """32 hexadecimal digits: milliseconds since 1970, then 74 random bits."""
    milliseconds = int(now.timestamp() * 1000)
    high = (milliseconds << 16) | (0x7 << 12) | secrets.randbits(12)
    low = (0b10 << 62) | secrets.randbits(62)
    return f"{high:016x}{low:016x}"
