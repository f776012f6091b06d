"""Remove deleted studies for good, with their artifacts."""

from __future__ import annotations

import logging
from datetime import timedelta

import fsspec

from ..context.context import Context
from ..db.retries import retried
from ..db.studies import Studies
from ..errors import ServiceError

_log = logging.getLogger(__name__)


def purge_deleted(ctx: Context) -> list[str]:
    """Remove studies that were deleted ``CDKA_PURGE_HOURS`` ago, with their artifacts; returns their ids."""
    with ctx.db.read() as session:
        due = Studies(session).deleted_before(ctx.clock() - timedelta(hours=ctx.settings.purge_hours))
    return [study_id for study_id in due if purge(ctx, study_id)]


def purge(ctx: Context, study_id: str) -> bool:
    """Remove a deleted study. Artifacts go first, so that none is left without a row that names it."""
    try:
        files, root = fsspec.url_to_fs(ctx.settings.artifacts_url)
        folder = f"{root.rstrip('/')}/studies/{study_id}"
        if files.exists(folder):
            files.rm(folder, recursive=True)
    except (OSError, ServiceError):
        _log.exception("the artifacts of deleted study %s cannot be removed; they are tried again later", study_id)
        return False
    _purge_rows(ctx, study_id)
    return True


@retried
def _purge_rows(ctx: Context, study_id: str) -> None:
    with ctx.db.write() as session:
        Studies(session).purge(study_id)
