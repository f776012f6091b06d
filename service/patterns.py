"""Regular expressions of users, matched in time that grows linearly with the text (RE2 does not backtrack)."""

from __future__ import annotations

from typing import Any

import re2

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
# Bytes that a compiled pattern may take.
_OPTIONS.max_mem = 4 << 20


def compile_pattern(text: str) -> Any:
    """A pattern with the methods of those of :mod:`re`.

    Raises:
        ValueError: it is no regular expression, or needs look-around or back-references; the message says what.
    """
    try:
        return re2.compile(text, _OPTIONS)
    except re2.error as error:
        said = error.args[0] if error.args else ""
        said = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        raise ValueError(
            f"not a regular expression of RE2, which has no look-around or back-references: {said}"
        ) from None
