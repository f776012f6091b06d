"""The checkpoints of one attempt: stored, reported, and removed when the server knows a newer one."""

from __future__ import annotations

import logging
from pathlib import Path

from service.paths import is_inside
from service.schemas.leases import LeasedTrial

from .artifacts import fetch, remove, store_checkpoint
from .reporter import Reporter

_log = logging.getLogger(__name__)


class StoredCheckpoints:
    """Keeps the newest checkpoint that the server knows, and later ones."""

    def __init__(self, trial: LeasedTrial, artifacts_url: str, reporter: Reporter | None) -> None:
        self._trial = trial
        self._artifacts_url = artifacts_url
        # Without a reporter nothing is stored: another process of the trial does that.
        self._reporter = reporter
        self._urls = [trial.checkpoint] if trial.checkpoint is not None and self._is_ours(trial.checkpoint) else []

    def _is_ours(self, checkpoint: str) -> bool:
        # A checkpoint URL must not read or remove anything outside of the study's folder.
        return is_inside(checkpoint, f"{self._artifacts_url.rstrip('/')}/studies/{self._trial.study_id}")

    def bring(self, folder: str) -> str | None:
        """The checkpoint to resume from, copied into ``folder``; ``None`` to start from the beginning."""
        checkpoint = self._trial.checkpoint
        if checkpoint is None:
            return None
        if not self._is_ours(checkpoint):
            _log.warning("trial %d starts anew, its checkpoint lies elsewhere: %s", self._trial.number, checkpoint)
            return None
        try:
            fetch(checkpoint, folder)
        except OSError as error:
            _log.warning("trial %d starts anew, its checkpoint cannot be read: %s", self._trial.number, error)
            return None
        return folder if (Path(folder) / "trainer_state.json").exists() else None

    def keep(self, folder: str, step: int) -> None:
        """Store a checkpoint and report it. If it cannot be stored, training continues and the former one stays."""
        trial, reporter = self._trial, self._reporter
        if reporter is None:
            return
        try:
            url = store_checkpoint(folder, self._artifacts_url, trial.study_id, trial.number, trial.attempt, step)
        except OSError as error:
            _log.warning("no checkpoint at step %d of trial %d: %s", step, trial.number, error)
            return
        self._urls.append(url)
        reporter.checkpoint(url)
        self.drop_old()

    def drop_old(self) -> None:
        """Remove checkpoints older than the newest that the server knows."""
        known = None if self._reporter is None else self._reporter.known_checkpoint
        while known in self._urls and self._urls[0] != known:
            try:
                remove(self._urls[0])
            except OSError as error:
                _log.warning("the checkpoint %s cannot be removed: %s", self._urls[0], error)
            del self._urls[0]
