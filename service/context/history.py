"""Histories of studies in memory, updated by the rows that changed since the last use."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from threading import Lock

from cachetools import LRUCache

from ..db.engine import Database
from ..db.observations import Observations
from ..db.studies import Studies
from ..db.trial_counts import Counts
from ..domain.records import Study, StudyLoad, TrialCounts, next_number
from ..search.history import History

MOST_KEPT = 32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A study, its history and its counts of trials at one moment. The history is a copy for the caller."""

    study: Study
    history: History
    counts: TrialCounts

    @property
    def next_number(self) -> int:
        """The number of the next trial."""
        return next_number(self.counts)


@dataclass(slots=True)
class _Kept:
    lock: Lock = field(default_factory=Lock)
    history: History | None = None
    study: Study | None = None


class Histories:
    """Histories by study, the most recently used ones kept.

    Every change of a trial carries the study's version, written under the lock of the study's row, so "all changes
    after version v" is complete.
    """

    def __init__(self, most_kept: int = MOST_KEPT) -> None:
        self._kept: LRUCache[str, _Kept] = LRUCache(most_kept)
        self._lock = Lock()

    def snapshot(self, database: Database, study_id: str, known: StudyLoad | None = None) -> Snapshot:
        """The current state of the study.

        ``known`` is what was just read of the study. If no trial has changed since, it saves reading the study again.

        The lock is held only while changed rows are read: sampling, pruning and comparing work on copies and never
        wait for each other.

        Raises:
            NotFound: there is no such study.
        """
        if database.in_unit:
            # The rows may include changes that are rolled back later. They must not enter the shared history.
            return self._read(database, study_id, _Kept(), None)
        with self._lock:
            kept = self._kept.setdefault(study_id, _Kept())
        with kept.lock:
            return self._read(database, study_id, kept, known)

    @staticmethod
    def _read(database: Database, study_id: str, kept: _Kept, known: StudyLoad | None) -> Snapshot:
        try:
            with database.read() as session:
                if known is not None and kept.history is not None and kept.study is not None:
                    changed = Observations(session).of_study(study_id, kept.history.version)
                    newest = max((o.version for o in changed), default=-1)
                    if kept.study.revision == known.revision and max(newest, kept.history.version) <= known.version:
                        kept.history.update(changed, known.version)
                        return Snapshot(_as_known(kept.study, known), kept.history.copy(), known.counts)
                study = Studies(session).get(study_id)
                if kept.history is None or kept.study is None or kept.study.revision != study.revision:
                    kept.history = History(study.spec.all_objectives)
                kept.study = study
                kept.history.update(Observations(session).of_study(study_id, kept.history.version), study.version)
                return Snapshot(study, kept.history.copy(), Counts(session).of_studies([study_id])[study_id])
        except BaseException:
            kept.history = None
            raise


def _as_known(study: Study, known: StudyLoad) -> Study:
    return replace(study, state=known.state, phase=known.phase, planned=known.planned, version=known.version)
