"""Leasing stays exact under races, restarts and a kill between any two SQL statements."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text

from service.app import create_app, make_context
from service.context.context import Context
from service.db.checks import check
from service.db.retries import ATTEMPTS, retried
from service.db.studies import Studies
from service.domain.records import Principal, Role
from service.domain.shape import Shape
from service.errors import Contention, Unavailable
from service.leases import acquisition, reports, results
from service.leases import grants as granting
from service.studies import studies
from tests.busy import busy_processes
from tests.conftest import Api, FakeClock, make_study

LONG = [pytest.mark.slow, pytest.mark.both_databases, pytest.mark.timeout(1200)]


def replica(api: Api, ctx: Context) -> Api:
    """Another server on the same database."""
    other = make_context(ctx.settings, ctx.clock, ctx.elapsed)
    made = Api(other, TestClient(create_app(other), base_url="http://localhost"), api.secrets)
    # FastAPI builds its routes at the first request, in a server's single event loop. Here every client thread has its
    # own loop, so one request comes first.
    assert made.call("GET", "/demand", "worker").status_code == 200
    return made


def value(trial: dict[str, Any]) -> float:
    return 1 - abs(trial["params"]["learning_rate"] - 1e-3)


def race(apis: list[Api], study: str, clients: int, hints: list[float]) -> tuple[list[int], int]:
    """Lease and finish until the study ends. Returns the trials' numbers and the most that ran at once."""
    running, most, lock = 0, 0, threading.Lock()
    seen: list[int] = []
    over = threading.Event()
    for api in apis:
        api.token("worker")
        api.token("member")

    def client(k: int) -> None:
        nonlocal running, most
        api = apis[k % len(apis)]
        while not over.is_set():
            answer = api.call("POST", "/leases", "worker", json={"runner": f"runner-{k}"})
            assert answer.status_code == 200, answer.text
            leases, hint = answer.json()["leases"], answer.json()["retry_after_seconds"]
            if not leases:
                hints.append(hint)
                if k < len(apis) and api.call("GET", f"/studies/{study}").json()["state"] == "completed":
                    over.set()
                over.wait(hint / 2)
                continue
            assert hint is None
            with lock:
                running += 1
                most = max(most, running)
                seen.append(leases[0]["trial"]["number"])
            assert api.report(leases[0], 0.25).status_code == 200
            with lock:
                running -= 1
            assert api.finish(leases[0], value=0.5).status_code == 200

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return seen, most


@pytest.mark.parametrize(
    ("clients", "trials", "busy"),
    [pytest.param(40, 40, 0, id="short"), pytest.param(200, 120, 4, id="long", marks=LONG)],
)
def test_two_replicas_run_every_trial_exactly_once(
    api: Api, ctx: Context, clients: int, trials: int, busy: int
) -> None:
    """Two servers with separate caches share one database. No runner gets an error."""
    study = api.create(search={"trials": trials, "concurrency": 7, "sampler": "random"})
    other = replica(api, ctx)
    hints: list[float] = []
    with busy_processes(busy):
        seen, most = race([api, other], study["id"], clients, hints)
    assert sorted(seen) == list(range(trials))
    assert 1 < most <= 7
    assert set(hints) <= {acquisition.IDLE_SECONDS, acquisition.BUSY_SECONDS}
    read = api.call("GET", f"/studies/{study['id']}").json()
    assert (read["state"], read["search"]["finished"]) == ("completed", trials)
    assert check(ctx.db) == []
    other.ctx.db.engine.dispose()


@pytest.mark.parametrize(
    ("sampler", "runners", "busy"),
    [
        pytest.param("tpe", 30, 0, id="tpe"),
        pytest.param("random", 30, 0, id="random"),
        pytest.param("qmc", 30, 0, id="qmc"),
        pytest.param("tpe", 200, 4, id="tpe-long", marks=LONG),
    ],
)
def test_simultaneous_requests_get_the_same_proposals_as_sequential_ones(
    api: Api, ctx: Context, monkeypatch: pytest.MonkeyPatch, sampler: str, runners: int, busy: int
) -> None:
    """The same history gives the same numbers and configurations, in fewer passes than runners."""
    passes: list[int] = []
    monkeypatch.setattr(acquisition, "serve", lambda ctx, asks: passes.append(len(asks)) or granting.serve(ctx, asks))
    # How long proposals take on a busy machine must not matter here.
    monkeypatch.setattr(acquisition, "PATIENCE_SECONDS", 600.0)
    found: list[list[Any]] = []
    with busy_processes(busy):
        for together in (False, True):
            search: dict[str, Any] = {"trials": 15 + runners, "concurrency": 1, "pruner": "none", "sampler": sampler}
            study = api.create(
                search={**search, "sampler_options": {"n_startup_trials": 5} if sampler == "tpe" else {}}
            )
            for _ in range(15):
                lease = api.lease()
                assert lease is not None
                api.finish(lease, value=value(lease["trial"]))
            changed = api.call("PATCH", f"/studies/{study['id']}", json={"concurrency": runners})
            assert changed.status_code == 200, changed.text
            passes.clear()
            with ThreadPoolExecutor(runners if together else 1) as pool:
                leases = list(pool.map(api.lease, [f"runner-{k}" for k in range(runners)]))
            by_number = sorted((t["trial"]["number"], t["trial"]["params"], t["trial"]["seed"]) for t in leases if t)
            found.append(by_number)
            assert [number for number, _, _ in by_number] == list(range(15, 15 + runners))
            assert api.call("POST", f"/studies/{study['id']}/cancel").status_code == 200
    assert found[0] == found[1]
    assert len(passes) < runners
    assert max(passes) > 1


def test_a_runner_that_is_not_served_in_time_gets_a_retry_hint(
    api: Api, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow sampler or a contending writer causes no error for the runner, and no trial is lost."""
    monkeypatch.setattr(acquisition, "PATIENCE_SECONDS", 0.05)
    study = api.create(search={"trials": 3, "concurrency": 3, "sampler": "random"})
    api.token("worker")
    proposing, go_on = threading.Event(), threading.Event()
    propose = ctx.policy.propose

    def slow(*arguments: Any) -> Any:
        proposing.set()
        assert go_on.wait(30)
        return propose(*arguments)

    monkeypatch.setattr(ctx.policy, "propose", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(api.lease, "first")
        assert proposing.wait(30)
        answer = api.call("POST", "/leases", "worker", json={"runner": "second"})
        assert (answer.status_code, answer.json()) == (
            200,
            {"leases": [], "retry_after_seconds": acquisition.BUSY_SECONDS},
        )
        # Reports and pages do not wait for the sampler either.
        assert api.call("GET", f"/studies/{study['id']}/comparison").status_code == 200
        go_on.set()
        lease = first.result(30)
    assert lease is not None
    assert lease["trial"]["number"] == 0

    def in_the_way(*_: Any) -> Any:
        raise Contention("another writer was in the way")

    with monkeypatch.context() as patch:
        patch.setattr(granting, "_record", in_the_way)
        answer = api.call("POST", "/leases", "worker", json={"runner": "second"})
        assert (answer.status_code, answer.json()["leases"]) == (200, [])
    lease = api.lease("second")
    assert lease is not None
    assert lease["trial"]["number"] == 1
    assert check(ctx.db) == []


def test_committed_grants_reach_their_runners_if_a_later_step_fails(
    api: Api, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queued trial is granted, then the database fails. Its runner keeps the lease, the next gets the error."""
    study = api.create(search={"trials": 3, "concurrency": 3, "sampler": "random"})
    body = {"params": {"r1": 2, "r2": 4, "r": 4, "alpha": 8, "learning_rate": 0.001}}
    assert api.call("POST", f"/studies/{study['id']}/trials", json=body).status_code == 201

    def away(*_: Any) -> Any:
        raise Unavailable("the database does not answer")

    with ctx.db.read() as session:
        (load,) = Studies(session).loads(None)
    asks = [granting.Ask(load, acquisition.Runner(f"runner-{k}", Shape(1, 0))) for k in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(granting, "_record", away)
        (grant,) = granting.serve(ctx, asks)
        assert grant is not None
        assert grant.lease.runner == "runner-0"
        with pytest.raises(Unavailable):
            granting.serve(ctx, asks[1:])
    assert check(ctx.db) == []


def test_replicas_that_propose_the_same_numbers_store_each_once(
    api: Api, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another replica stores its trial between our proposals and their recording, three times in a row."""
    api.create(search={"trials": 8, "concurrency": 8, "sampler": "random"})
    other = replica(api, ctx)
    record, races = granting._record, []

    def raced(mine: Context, *arguments: Any) -> Any:
        if mine is ctx and len(races) < 3:
            races.append(other.lease("elsewhere"))
        return record(mine, *arguments)

    monkeypatch.setattr(granting, "_record", raced)
    with ThreadPoolExecutor(8) as pool:
        mine = list(pool.map(api.lease, [f"runner-{k}" for k in range(8)]))
    numbers = [lease["trial"]["number"] for lease in [*races, *mine] if lease is not None]
    assert sorted(numbers) == list(range(8))
    assert sum(lease is None for lease in mine) == 3
    assert check(ctx.db) == []
    other.ctx.db.engine.dispose()


def test_a_batch_that_uses_up_the_space_ends_the_search(api: Api, ctx: Context) -> None:
    """Ten runners ask at once for six configurations: each runs once, and the search ends."""
    space = {
        "r1": {"choices": [1, 2]},
        "r2": {"choices": [4]},
        "alpha": {"choices": [8, 16, 32]},
        "learning_rate": 1e-3,
    }
    study = api.create(search={"trials": 10, "concurrency": 10}, search_space=space)
    api.token("worker")
    with ThreadPoolExecutor(10) as pool:
        leases = [t for t in pool.map(api.lease, [f"runner-{k}" for k in range(10)]) if t is not None]
    configurations = {str(sorted(lease["trial"]["params"].items())) for lease in leases}
    assert len(configurations) == len(leases) == 6
    for lease in leases:
        assert api.finish(lease).status_code == 200
    read = api.call("GET", f"/studies/{study['id']}").json()
    assert (read["state"], read["search"]["planned"]) == ("completed", len(leases))


def test_a_server_restart_does_not_change_the_proposals(api: Api, ctx: Context) -> None:
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


def test_alternating_replicas_propose_the_same_as_one_server(api: Api, ctx: Context) -> None:
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
    """What a server does for one runner: lease, report and finish until no trial is left."""
    runner = acquisition.Runner("runner", Shape(1, 0))
    while grants := acquisition.acquire(ctx, runner, 1).grants:
        (grant,) = grants
        at = 1 - abs(grant.trial.params["learning_rate"] - 1e-3)
        reports.report(ctx, grant.lease.id, None, [(1, {"accuracy": at / 2}), (2, {"accuracy": at})], None)
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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("every", [pytest.param(11, id="some"), pytest.param(1, id="all", marks=LONG)])
def test_a_kill_between_any_two_statements_loses_and_repeats_no_trial(
    api: Api, ctx: Context, clock: FakeClock, tmp_path: Path, request: pytest.FixtureRequest, every: int
) -> None:
    """The whole loop of three trials is killed before its 1st statement, before its 2nd, and so on to its last.

    Each time another server takes over after the lease time. The trials that end are then always the same three, with
    the same configurations and values, each once; and the database is in order. The short form kills before every
    eleventh statement.
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
    for statement in range(1, 1000, every if sqlite else max(7, every)):
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


def test_contention_is_retried_then_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.db.retries.FIRST_WAIT", 0.0)
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


def test_a_writer_waits_for_another_one(api: Api, ctx: Context) -> None:
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


def test_setting_the_clock_back_neither_expires_nor_prolongs_leases(api: Api, clock: FakeClock) -> None:
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
    # The silent runner's lease ends after one or two lease times, not after two hours.
    assert set(taken) == {dead["trial"]["id"]}


def test_setting_the_clock_forward_expires_no_live_lease(api: Api, clock: FakeClock) -> None:
    api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    true = clock.elapsed()
    api.ctx.elapsed = lambda: true
    clock.advance(86_400)
    assert api.lease("other") is None
    assert api.report(lease, 0.5).json()["directive"] == "continue"


def test_clock_jumps_do_not_trigger_trial_limits(api: Api, ctx: Context, clock: FakeClock) -> None:
    from service.server.maintenance import maintain

    api.create(search={"trials": 1}, limits={"stall_minutes": 5})
    lease = api.lease()
    assert lease is not None
    true = clock.elapsed()
    api.ctx.elapsed = lambda: true
    clock.advance(3600)
    maintain(ctx)
    assert api.report(lease, 0.5).status_code == 200


def test_a_server_without_authentication_accepts_studies(ctx: Context) -> None:
    ctx.settings.auth = "off"
    with TestClient(create_app(ctx), base_url="http://localhost") as http:
        made = http.post("/api/v1/studies", json=make_study())
        assert made.status_code == 201
        assert http.get("/api/v1/studies").json()["items"][0]["id"] == made.json()["id"]
