"""Histories of studies in memory, updated by the rows that changed since the last use."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock

from cachetools import LRUCache

from ..db.engine import Database
from ..db.observations import Observations
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.records import Study
from ..search.history import History

MOST_KEPT = 32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A study, its history and its next trial's number at one moment. The history is a copy for the caller."""

    study: Study
    history: History
    next_number: int


@dataclass(slots=True)
class _Kept:
    lock: Lock = field(default_factory=Lock)
    history: History | None = None
    revision: int = -1


class Histories:
    """Histories by study, the most recently used ones kept.

    Every change of a trial carries the study's version, written under the lock of the study's row, so "all changes
    after version v" is complete.
    """

    def __init__(self, most_kept: int = MOST_KEPT) -> None:
        self._kept: LRUCache[str, _Kept] = LRUCache(most_kept)
        self._lock = Lock()

    def snapshot(self, database: Database, study_id: str) -> Snapshot:
        """The current state of the study.

        The lock is held only while changed rows are read: sampling, pruning and comparing work on copies and never
        wait for each other.

        Raises:
            NotFound: there is no such study.
        """
        if database.in_unit:
            # The rows may include changes that are rolled back later. They must not enter the shared history.
            return self._read(database, study_id, _Kept())
        with self._lock:
            kept = self._kept.setdefault(study_id, _Kept())
        with kept.lock:
            return self._read(database, study_id, kept)

    @staticmethod
    def _read(database: Database, study_id: str, kept: _Kept) -> Snapshot:
        try:
            with database.read() as session:
                study = Studies(session).get(study_id)
                if kept.history is None or kept.revision != study.revision:
                    kept.history, kept.revision = History(study.spec.all_objectives), study.revision
                kept.history.update(Observations(session).of_study(study_id, kept.history.version), study.version)
                return Snapshot(study, kept.history.copy(), Trials(session).next_number(study_id))
        except BaseException:
            kept.history = None
            raise
