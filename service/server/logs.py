"""JSON logs, one line per record, with the id of the request."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Literal

from pythonjsonlogger.json import JsonFormatter


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
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Drop per-call messages of libraries.
    for noisy in ("httpx", "httpcore", "alembic", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
