"""The number of SQL statements of a lease, a report and a result, which is most of their cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event
from sqlalchemy.engine import Engine

from tests.conftest import Api

# Raise these only with a reason: on PostgreSQL each statement costs a round trip.
LEASE, REPORT, RESULT = 10, 7, 8


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Collect the SQL statements that are executed, without BEGIN and COMMIT."""
    seen: list[str] = []

    def record(connection: object, cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith("BEGIN"):
            seen.append(statement)

    event.listen(engine, "before_cursor_execute", record)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", record)


def test_a_lease_a_report_and_a_result_take_the_recorded_number_of_statements(api: Api) -> None:
    api.create(search={"sampler": "random", "trials": 9})
    engine = api.ctx.db.engine
    first = api.lease()
    assert first is not None
    api.report(first, 0.4)
    api.finish(first)
    with statements(engine) as leased:
        lease = api.lease()
    assert lease is not None
    with statements(engine) as reported:
        api.report(lease, 0.4, first_step=1)
    with statements(engine) as finished:
        api.finish(lease)
    # Without the transaction's own BEGIN; the first statement of each reads the token.
    assert [len(found) for found in (leased, reported, finished)] == [LEASE, REPORT, RESULT]


def test_cancelling_many_queued_trials_takes_as_many_statements_as_cancelling_one(api: Api) -> None:
    """SQLite's writer must not be held for a statement a trial."""
    counts = []
    for queued in (1, 8):
        start = [{"r1": 2, "r2": 4, "r": 1 + k % 4, "alpha": 8 + k} for k in range(queued)]
        study = api.create(search={"trials": 9, "start": start})
        with statements(api.ctx.db.engine) as seen:
            assert api.call("POST", f"/studies/{study['id']}/cancel").status_code == 200
        states = [t["state"] for t in api.call("GET", f"/studies/{study['id']}/trials").json()["items"]]
        assert states == ["cancelled"] * queued
        counts.append(len(seen))
    assert counts[0] == counts[1]
