"""The contract of the database layer, on every supported database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from service.db.checks import check
from service.db.engine import Database
from service.db.teams import Teams
from service.domain.operation import Team
from service.errors import Contention, NotFound
from tests.postgres import Cluster

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database at the newest revision."""
    if request.param == "sqlite":
        made = Database(f"sqlite:///{tmp_path}/contract.db")
        made.upgrade()
        yield made
        made.close()
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    made = Database(cluster.create("contract", template="empty"))
    yield made
    made.close()
    cluster.drop("contract")


def names(database: Database) -> set[str]:
    with database.read() as session:
        return {team.name for team in Teams(session).list()}


def test_a_new_database_is_current_and_passes_the_check(database: Database) -> None:
    assert database.is_current()
    assert database.revision() == database.newest()
    assert check(database) == []


def test_a_write_commits_once_at_its_end(database: Database) -> None:
    with database.write() as session:
        Teams(session).add(Team("1" * 32, "first", NOW))
        assert "first" not in names(database), "not before the block ends"
    assert "first" in names(database)


def test_a_write_that_raises_changes_nothing(database: Database) -> None:
    before = names(database)

    def change_and_fail() -> None:
        with database.write() as session:
            Teams(session).add(Team("1" * 32, "first", NOW))
            session.flush()
            raise NotFound("changed its mind")

    with pytest.raises(NotFound):
        change_and_fail()
    assert names(database) == before


def test_a_read_sees_one_snapshot(database: Database) -> None:
    with database.read() as session:
        before = {team.name for team in Teams(session).list()}
        with database.write() as other:
            Teams(other).add(Team("1" * 32, "first", NOW))
        assert {team.name for team in Teams(session).list()} == before
    assert "first" in names(database)


def test_a_unit_of_work_is_one_transaction_over_several_blocks(database: Database) -> None:
    for commit in (False, True):
        unit, token = database.begin_unit()
        try:
            with database.write() as session:
                Teams(session).add(Team("1" * 32, "first", NOW))
            with database.write() as session:
                Teams(session).add(Team("2" * 32, "second", NOW))
            assert {"first", "second"} <= names(database), "the unit reads what it wrote"
        finally:
            database.end_unit(unit, commit=commit)
            database.leave_unit(token)
        assert ({"first", "second"} <= names(database)) == commit


def test_a_duplicate_name_raises_integrity_error(database: Database) -> None:
    def add(team_id: str) -> None:
        with database.write() as session:
            Teams(session).add(Team(team_id, "first", NOW))
            session.flush()

    add("1" * 32)
    with pytest.raises(IntegrityError):
        add("2" * 32)
    assert check(database) == []


def test_two_writers_of_one_row_both_succeed_or_one_gets_contention(database: Database) -> None:
    with database.write() as session:
        Teams(session).add(Team("1" * 32, "first", NOW))
    told: list[str] = []
    barrier = threading.Barrier(2)

    def lock() -> None:
        barrier.wait()
        try:
            with database.write() as session:
                Teams(session).get("1" * 32, lock=True)
            told.append("done")
        except Contention:
            told.append("contention")

    threads = [threading.Thread(target=lock) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(told) == 2
    assert "done" in told
