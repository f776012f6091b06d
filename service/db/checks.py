"""Check a database: schema, references, and invariants of the records."""

from __future__ import annotations

from sqlalchemy import Connection, func, select, text

from ..domain.states import LeaseState, TrialState
from .engine import Database
from .models import EventRow, LeaseRow, StudyCountRow, StudyRow, TrialRow


def check(database: Database) -> list[str]:
    """A description of every problem; empty if there is none.

    Raises:
        Unavailable: the database does not answer.
    """
    if not database.is_current():
        at = database.revision() or "none"
        return [f"the schema is at revision {at}, but this release needs {database.newest()}; run: cdka db upgrade"]
    with database.engine.connect() as connection:
        faults = _integrity(connection) if database.is_sqlite else []
        return faults + _counts(connection) + _leases(connection) + _events(connection)


def _integrity(connection: Connection) -> list[str]:
    found = [str(row[0]) for row in connection.execute(text("PRAGMA integrity_check")) if row[0] != "ok"]
    broken = connection.execute(text("PRAGMA foreign_key_check")).all()
    return found + [f"a row of {row[0]} refers to a row of {row[2]} that does not exist" for row in broken]


def _counts(connection: Connection) -> list[str]:
    true = {
        (row[0], row[1], row[2]): row[3]
        for row in connection.execute(
            select(TrialRow.study_id, TrialRow.phase, TrialRow.state, func.count()).group_by(
                TrialRow.study_id, TrialRow.phase, TrialRow.state
            )
        )
    }
    kept = {
        (row[0], row[1], row[2]): row[3]
        for row in connection.execute(
            select(StudyCountRow.study_id, StudyCountRow.phase, StudyCountRow.state, StudyCountRow.count)
        )
    }
    return [
        f"study {key[0]} counts {kept.get(key, 0)} trials in {key[1]}/{key[2]} but has {true.get(key, 0)}"
        for key in sorted(true.keys() | kept.keys())
        if true.get(key, 0) != kept.get(key, 0)
    ]


def _leases(connection: Connection) -> list[str]:
    holders = (
        select(TrialRow.id, TrialRow.number, TrialRow.study_id, LeaseRow.state)
        .outerjoin(LeaseRow, LeaseRow.id == TrialRow.lease_id)
        .where(TrialRow.state == TrialState.RUNNING)
    )
    return [
        f"trial {row[1]} of study {row[2]} is running without a held lease"
        for row in connection.execute(holders)
        if row[3] != LeaseState.HELD
    ]


def _events(connection: Connection) -> list[str]:
    query = (
        select(StudyRow.id, StudyRow.version, func.min(EventRow.number), func.max(EventRow.number), func.count())
        .join(EventRow, EventRow.study_id == StudyRow.id)
        .group_by(StudyRow.id, StudyRow.version)
    )
    return [
        f"the events of study {row[0]} have gaps or do not end at its version {row[1]}"
        for row in connection.execute(query)
        if row[3] != row[1] or row[3] - row[2] + 1 != row[4]
    ]
