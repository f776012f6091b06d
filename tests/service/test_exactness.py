"""Exact under races, restarts, and a kill between any two statements."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text

from service.app import create_app, make_context
from service.db.checks import check
from service.db.studies import Studies
from service.domain.records import Principal, Role
from service.domain.shape import Shape
from service.errors import Contention
from service.scheduling import leasing, reporting, results, studies
from service.scheduling.context import Context
from service.scheduling.retrying import ATTEMPTS, retried
from tests.conftest import Api, FakeClock, make_study


def replica(api: Api, ctx: Context) -> Api:
    """Another server on the same database."""
    other = make_context(ctx.settings, ctx.clock, ctx.elapsed)
    return Api(other, TestClient(create_app(other), base_url="http://localhost"), api.secrets)


def value(trial: dict[str, Any]) -> float:
    return 1 - abs(trial["params"]["learning_rate"] - 1e-3)


def race(apis: list[Api], clients: int, work: Callable[[Api, dict[str, Any]], None]) -> int:
    """Clients that lease until nothing has been there for a while; returns the most that ran at once."""
    running, most, lock = 0, 0, threading.Lock()
    for api in apis:
        api.token("worker")

    def client(k: int) -> None:
        nonlocal running, most
        api, idle = apis[k % len(apis)], 0
        while idle < 5:
            lease = api.lease(f"runner-{k}")
            if lease is None:
                idle += 1
                continue
            idle = 0
            with lock:
                running += 1
                most = max(most, running)
            work(api, lease)
            with lock:
                running -= 1
            assert api.finish(lease, value=0.5).status_code == 200

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return most


def test_a_hundred_racing_clients_of_two_replicas_run_exactly_the_trials(api: Api, ctx: Context) -> None:
    """Two servers with caches of their own on one database; n trials asked for are n trials run, none twice."""
    study = api.create(search={"trials": 60, "concurrency": 7, "sampler": "random"})
    other = replica(api, ctx)
    seen: list[int] = []
    most = race([api, other], 100, lambda _, lease: seen.append(lease["trial"]["number"]))
    assert sorted(seen) == list(range(60))
    assert most <= 7
    read = api.call("GET", f"/studies/{study['id']}").json()
    assert (read["state"], read["search"]["finished"]) == ("completed", 60)
    assert check(ctx.db) == []
    other.ctx.db.engine.dispose()


def test_fifty_trials_are_the_same_whether_or_not_the_server_restarts_after_25(api: Api, ctx: Context) -> None:
    changes = {"search": {"trials": 50, "concurrency": 1, "pruner": "median"}}
    api.create(**changes)
    straight = [t["params"] for t in api.run_all(value)]
    api.create(**changes)
    parts = []
    for _ in range(25):
        lease = api.lease()
        assert lease is not None
        api.finish(lease, value=value(lease["trial"]))
        parts.append(lease["trial"]["params"])
    restarted = replica(api, ctx)
    parts += [t["params"] for t in restarted.run_all(value)]
    assert parts == straight
    restarted.ctx.db.engine.dispose()


def test_two_replicas_that_take_turns_propose_what_one_would(api: Api, ctx: Context) -> None:
    api.create(search={"trials": 20, "concurrency": 1})
    straight = [t["params"] for t in api.run_all(value)]
    api.create(search={"trials": 20, "concurrency": 1})
    other, turns = replica(api, ctx), []
    for k in range(20):
        mine = (api, other)[k % 2]
        lease = mine.lease()
        assert lease is not None
        turns.append(lease["trial"]["params"])
        (other, api)[k % 2].finish(lease, value=value(lease["trial"]))
    assert turns == straight
    other.ctx.db.engine.dispose()


# A kill between any two statements.

WORKER = Principal("", "", "default", Role.ADMIN, "test")


def _loop(ctx: Context, study_id: str, trials: int) -> None:
    """What a server does for one runner: ask, lease, report, finish, until there is nothing to do."""
    runner = leasing.Runner("runner", Shape(1, 0))
    while grants := leasing.acquire(ctx, runner, 1):
        (grant,) = grants
        at = 1 - abs(grant.trial.params["learning_rate"] - 1e-3)
        reporting.report(ctx, grant.lease.id, None, [(1, {"accuracy": at / 2}), (2, {"accuracy": at})], None)
        results.finish(ctx, grant.lease.id, None, results.Result("completed", {"accuracy": at}))


def _killed_at(url: str, home: Path, study_id: str, statement: int, clock_ahead: float) -> None:
    """Run the loop in a process of its own and kill -9 it just before one of its statements (or commits)."""
    from service.settings import Settings

    clock = FakeClock()
    clock.advance(clock_ahead)
    ctx = make_context(Settings(home=home, database_url=url, lease_seconds=60), clock, clock.elapsed)
    clock.advance(61)
    count = 0

    def step(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(ctx.db.engine, "before_cursor_execute", step)
    event.listen(ctx.db.engine, "commit", step)
    _loop(ctx, study_id, 3)
    os._exit(0)


@pytest.mark.timeout(600)
def test_a_kill_between_any_two_statements_loses_and_doubles_nothing(
    api: Api, ctx: Context, clock: FakeClock, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The whole loop of three trials is killed before its 1st statement, before its 2nd, and so on to its last.

    Each time another server takes over after the lease time. The trials that end are then always the same three, with
    the same configurations and values, each once; and the database is in order.
    """
    study = api.create(search={"trials": 3, "concurrency": 1, "pruner": "median"})
    url = ctx.settings.database_url
    sqlite = ctx.db.is_sqlite
    if sqlite:
        with ctx.db.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    ctx.db.engine.dispose()
    processes = multiprocessing.get_context("fork")
    expected: list[Any] = []
    # Each process starts from the same database. On PostgreSQL every seventh statement is enough: what differs from
    # SQLite is the database, not our statements.
    for statement in range(1, 1000, 1 if sqlite else 7):
        if sqlite:
            copy = f"sqlite:///{tmp_path}/killed.db"
            for suffix in ("", "-wal", "-shm"):
                (tmp_path / f"killed.db{suffix}").unlink(missing_ok=True)
            shutil.copy(tmp_path / "cdka.db", tmp_path / "killed.db")
        else:
            cluster = request.getfixturevalue("cluster")
            copy = cluster.create(f"killed_{statement}", template=url.rsplit("/", 1)[1])
        child = processes.Process(target=_killed_at, args=(copy, tmp_path, study["id"], statement, 61))
        child.start()
        child.join(timeout=60)
        assert child.exitcode in (0, -signal.SIGKILL)
        after = FakeClock()
        after.advance(1000)
        settings = ctx.settings.model_copy(update={"database_url": copy})
        successor = make_context(settings, after, after.elapsed)
        after.advance(61)
        _loop(successor, study["id"], 3)
        with successor.db.read() as session:
            read = Studies(session).get(study["id"])
            rows = session.execute(text("SELECT number, params, metrics, state FROM trials ORDER BY number")).all()
        found = [tuple(map(str, row)) for row in rows]
        expected = expected or found
        assert read.state == "completed", statement
        assert len(found) == 3, statement
        assert found == expected, statement
        assert check(successor.db) == [], statement
        successor.db.engine.dispose()
        if not sqlite:
            cluster.drop(f"killed_{statement}")
        if child.exitcode == 0:
            break
    assert child.exitcode == 0, "the loop has more statements than were stepped through"
    assert statement > 60


# Contention, and the clock.


def test_contention_is_tried_again_and_then_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.scheduling.retrying.FIRST_WAIT", 0.0)
    calls = []

    @retried
    def sometimes(fails: int) -> str:
        calls.append(fails)
        if len(calls) <= fails:
            raise Contention("in the way")
        return "done"

    assert sometimes(3) == "done"
    assert len(calls) == 4
    calls.clear()
    with pytest.raises(Contention):
        sometimes(100)
    assert len(calls) == ATTEMPTS


def test_a_writer_in_the_way_is_waited_for(api: Api, ctx: Context) -> None:
    """Another transaction holds the study's row (SQLite: the database) for a moment; nothing fails."""
    study = api.create()
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        with ctx.db.write() as session:
            Studies(session).get(study["id"], lock=True)
            holding.set()
            release.wait(5)

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait(5)
    threading.Timer(0.3, release.set).start()
    assert studies.pause_study(ctx, WORKER, study["id"], drain=True)[0].state == "paused"
    holder.join()


def test_a_clock_that_goes_back_neither_kills_leases_nor_keeps_dead_ones(api: Api, clock: FakeClock) -> None:
    api.create(search={"trials": 2, "concurrency": 2})
    alive, dead = api.lease("alive"), api.lease("dead")
    assert alive is not None
    assert dead is not None
    true = clock.elapsed()
    api.ctx.elapsed = lambda: true + passed
    passed = 10.0
    clock.advance(10 - 7200)  # two hours back
    api.call("GET", "/demand", "worker")
    assert api.report(alive, 0.5).json()["directive"] == "continue"
    taken = []
    for _ in range(4):
        clock.advance(40)
        passed += 40
        assert api.report(alive).status_code == 200
        if (lease := api.lease("third")) is not None:
            taken.append(lease["trial"]["id"])
    # The silent one's lease ends a lease time or two later, not two hours later.
    assert set(taken) == {dead["trial"]["id"]}


def test_a_clock_that_jumps_ahead_expires_nothing_that_is_alive(api: Api, clock: FakeClock) -> None:
    api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    true = clock.elapsed()
    api.ctx.elapsed = lambda: true
    clock.advance(86_400)
    assert api.lease("other") is None
    assert api.report(lease, 0.5).json()["directive"] == "continue"


def test_limits_do_not_count_a_jump_of_the_clock_against_a_trial(api: Api, ctx: Context, clock: FakeClock) -> None:
    from service.scheduling.maintenance import maintain

    api.create(search={"trials": 1}, limits={"stall_minutes": 5})
    lease = api.lease()
    assert lease is not None
    true = clock.elapsed()
    api.ctx.elapsed = lambda: true
    clock.advance(3600)
    maintain(ctx)
    assert api.report(lease, 0.5).status_code == 200


def test_studies_on_a_server_without_authentication(ctx: Context) -> None:
    ctx.settings.auth = "off"
    with TestClient(create_app(ctx)) as http:
        made = http.post("/api/v1/studies", json=make_study())
        assert made.status_code == 201
        assert http.get("/api/v1/studies").json()["items"][0]["id"] == made.json()["id"]
