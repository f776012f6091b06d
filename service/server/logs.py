"""JSON logs, one line per record, with the id of the request."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

# Control characters, line separators, and marks that change the direction of text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class _OneLine(logging.Formatter):
    """Text without control characters: what a caller sent cannot forge a line or move a terminal's cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        """The line, with control characters as escapes; a traceback below it keeps its lines."""
        return _CONTROL.sub(lambda found: repr(found.group())[1:-1], super().formatMessage(record))


def set_up_logging(form: Literal["json", "text"], request_id: Callable[[], str]) -> None:
    """Send all logs of this process to standard error; ``request_id`` returns the current request's id."""

    class _WithRequest(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            record.request_id = request_id()
            return True

    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_WithRequest())
    if form == "json":
        fields = "%(levelname)s %(name)s %(message)s %(request_id)s"
        renamed = {"levelname": "level", "name": "logger"}
        handler.setFormatter(JsonFormatter(fields, rename_fields=renamed, timestamp="time"))
    else:
        handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Drop per-call messages of libraries.
    for noisy in ("httpx", "httpcore", "alembic", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
