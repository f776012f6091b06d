"""Check a database: schema, references, and invariants of the records; and mend what can be mended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, text, update

from ..domain.resources import resource_faults
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
        found = faults + _counts(connection) + _leases(connection) + _events(connection)
        return found + [fault for _, fault, _ in _resources(connection)]


def repair(database: Database) -> list[str]:
    """Mend what an earlier release let in; returns what was done.

    Takes measurements that no page can show out of trials, and counts trials anew.

    Raises:
        Unavailable: the database does not answer.
    """
    done = []
    with database.engine.begin() as connection:
        for trial_id, fault, good in list(_resources(connection)):
            connection.execute(update(TrialRow).where(TrialRow.id == trial_id).values(resources=good))
            done.append(f"taken out: {fault}")
        if wrong := _counts(connection):
            connection.execute(delete(StudyCountRow))
            grouped = select(TrialRow.study_id, TrialRow.phase, TrialRow.state, func.count()).group_by(
                TrialRow.study_id, TrialRow.phase, TrialRow.state
            )
            names = ["study_id", "phase", "state", "count"]
            connection.execute(insert(StudyCountRow).from_select(names, grouped))
            done += [f"counted anew: {fault}" for fault in wrong]
    return done


def _resources(connection: Connection) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Trials with measurements that are none: id, what is wrong, and what is left without it."""
    query = select(TrialRow.id, TrialRow.number, TrialRow.study_id, TrialRow.resources)
    for trial_id, number, study_id, resources in connection.execute(query):
        if faults := resource_faults(resources or {}):
            good = {name: value for name, value in resources.items() if not resource_faults({name: value})}
            yield trial_id, f"resources of trial {number} of study {study_id}: {faults[0]}", good


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
