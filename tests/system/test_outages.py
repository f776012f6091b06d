"""Outages: PostgreSQL stops under a running service, replicas are killed, event streams break."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cli.processes import free_port
from service.client import Client
from service.db.checks import check
from service.db.engine import Database
from service.errors import Unavailable
from service.schemas.specs import Shape
from tests.conftest import make_study
from tests.postgres import Cluster

from .conftest import until

pytestmark = [pytest.mark.slow]
LEASE_SECONDS = 10.0


class Replica:
    """An API server in a process of its own."""

    def __init__(self, url: str, home: Path, data: Path) -> None:
        self.port = free_port(20_000 + secrets.randbelow(12_000))
        environment = {
            **os.environ,
            "CDKA_HOME": str(home),
            "CDKA_DATABASE_URL": url,
            "CDKA_DATA_DIRS": str(data),
            "CDKA_PORT": str(self.port),
            "CDKA_LEASE_SECONDS": str(LEASE_SECONDS),
            "CDKA_RATE_LIMIT": "0",
            "HF_HUB_OFFLINE": "1",
        }
        self.log = home / f"api-{self.port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service.app", "serve"], env=environment, stdout=log, stderr=log
            )
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = environment
        self.clients: list[Client] = []

    def client(self, token: str) -> Client:
        made = Client(self.url, token, attempts=1)
        self.clients.append(made)
        return made

    def stop(self) -> None:
        for client in self.clients:
            client.close()
        self.process.terminate()
        # uvicorn shuts down cleanly and then raises the signal that it received.
        assert self.process.wait(20) in (0, -signal.SIGTERM, -signal.SIGKILL), self.log.read_text()[-2000:]


@pytest.fixture
def private() -> Iterator[Cluster]:
    """A PostgreSQL cluster for one test, which stops it while the service runs."""
    made = Cluster()
    yield made
    made.stop()


@pytest.fixture
def pair(private: Cluster, tmp_path: Path, data_root: Path) -> Iterator[tuple[Replica, Replica, str]]:
    url = private.create("service")
    database = Database(url)
    database.upgrade()
    database.engine.dispose()
    first, second = Replica(url, tmp_path, data_root), Replica(url, tmp_path, data_root)
    for replica in (first, second):
        until(replica.client("").ready, 60, "a replica")
    token = subprocess.check_output(
        [sys.executable, "-m", "service.app", "create-token", "--name", "test", "--role", "admin"],
        env=first.environment,
        text=True,
    ).strip()
    yield first, second, token
    first.stop()
    second.stop()


def finish(client: Client, lease: Any, value: float) -> None:
    client.finish(lease.id, {"state": "completed", "metrics": {"accuracy": value}})


def test_a_30_second_postgresql_outage_loses_no_trial_and_no_report(
    private: Cluster, pair: tuple[Replica, Replica, str]
) -> None:
    first, second, token = pair
    one, two = first.client(token), second.client(token)
    study = one.create_study(make_study(search={"trials": 4, "concurrency": 2}))
    (held,) = one.lease("runner-1", Shape()).leases
    (done,) = two.lease("runner-2", Shape()).leases
    finish(two, done, 0.5)
    one.report(held.id, [(1, {"accuracy": 0.25})])
    private.halt()
    gone = time.monotonic()
    answers = []
    while time.monotonic() < gone + 30:
        for client in (one, two):
            began = time.monotonic()
            with pytest.raises(Unavailable, match=r"database|connection"):
                client.report(held.id, [(2, {"accuracy": 0.5})])
            answers.append(time.monotonic() - began)
        for replica in (first, second):
            assert httpx.get(f"{replica.url}/healthz").status_code == 200
            assert httpx.get(f"{replica.url}/readyz").status_code == 503
        time.sleep(1.0)
    assert max(answers) < 10  # an error within 10 s, not a call that hangs
    private.start()
    until(lambda: one.ready() and two.ready(), 30, "recovery")
    # The outage lasted three lease times. No other runner gets the trial, and its holder continues.
    assert held.trial.id not in [lease.trial.id for lease in two.lease("thief", Shape()).leases]
    assert one.report(held.id, [(2, {"accuracy": 0.5})]).directive == "continue"
    finish(two, held, 0.6)
    trial = two.trial(held.trial.id)
    assert (trial.state, trial.attempts) == ("completed", 1)
    assert [m.value for m in one.metrics(held.trial.id)] == [0.25, 0.5]
    for lease in one.lease("runner-1", Shape(), wanted=4).leases:
        finish(one, lease, 0.4)
    _play_to_the_end(one, two, study.id)


def _play_to_the_end(one: Client, two: Client, study_id: str) -> None:
    deadline = time.monotonic() + 60
    while one.study(study_id).state == "running" and time.monotonic() < deadline:
        for client in (one, two):
            for lease in client.lease("closer", Shape()).leases:
                finish(client, lease, 0.4)
        time.sleep(0.5)
    trials = list(two.trials(study_id))
    assert [t.number for t in trials] == list(range(len(trials)))
    assert {t.state for t in trials} <= {"completed"}
    assert one.study(study_id).state == "completed"


def test_outages_of_replicas_expire_no_lease(
    private: Cluster, pair: tuple[Replica, Replica, str], tmp_path: Path, data_root: Path
) -> None:
    """One replica is killed and the other keeps serving. Then both are down for four lease times."""
    first, second, token = pair
    one, two = first.client(token), second.client(token)
    study = one.create_study(make_study(search={"trials": 3, "concurrency": 2}))
    (held,) = one.lease("runner-1", Shape()).leases
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    assert two.report(held.id, [(1, {"accuracy": 0.1})]).directive == "continue"
    second.process.send_signal(signal.SIGKILL)
    second.process.wait()
    time.sleep(4 * LEASE_SECONDS)
    url = private.url("service")
    third, fourth = Replica(url, tmp_path, data_root), Replica(url, tmp_path, data_root)
    # The fixture stops these replicas at the end.
    first.process, second.process = third.process, fourth.process
    first.clients, second.clients = [*first.clients, *third.clients], [*second.clients, *fourth.clients]
    third.clients, fourth.clients = first.clients, second.clients
    three, four = third.client(token), fourth.client(token)
    until(lambda: three.ready() and four.ready(), 60, "new replicas")
    stolen = [lease.trial.id for lease in four.lease("thief", Shape(), wanted=2).leases]
    assert held.trial.id not in stolen
    assert three.report(held.id, [(2, {"accuracy": 0.2})]).directive == "continue"
    finish(four, held, 0.5)
    assert three.trial(held.trial.id).attempts == 1
    assert three.study(study.id).search.finished == 1
    database = Database(url)
    assert check(database) == []
    database.engine.dispose()


def test_two_racing_replicas_run_every_trial_once_within_the_concurrency(pair: tuple[Replica, Replica, str]) -> None:
    """Twelve clients on two server processes run 40 trials, at most five at once."""
    from concurrent.futures import ThreadPoolExecutor

    first, second, token = pair
    admin = first.client(token)
    study = admin.create_study(make_study(search={"trials": 40, "concurrency": 5, "sampler": "random"}))
    over: list[int] = []

    def client(k: int) -> list[int]:
        numbers, idle = [], 0
        with (first, second)[k % 2].client(token) as mine:
            while idle < 8:
                try:
                    leases = mine.lease(f"runner-{k}", Shape()).leases
                except Unavailable:
                    leases = []
                if not leases:
                    idle += 1
                    time.sleep(0.02)
                for lease in leases:
                    idle = 0
                    numbers.append(lease.trial.number)
                    running = mine.study(study.id).search.running
                    over.extend([running] * (running > 5))
                    finish(mine, lease, 0.5)
        return numbers

    with ThreadPoolExecutor(12) as pool:
        found = [n for numbers in pool.map(client, range(12)) for n in numbers]
    assert sorted(found) == list(range(40))
    assert over == []
    assert admin.study(study.id).state == "completed"


def test_an_event_stream_resumes_after_its_server_was_killed(
    private: Cluster, pair: tuple[Replica, Replica, str]
) -> None:
    """The watcher's replica is killed. The watcher gets the remaining events from the other replica."""
    first, second, token = pair
    two = second.client(token)
    study = two.create_study(make_study(search={"trials": 2, "concurrency": 1}))
    watcher = first.client(token)
    stream = watcher.watch(study.id)
    seen = [next(stream)]
    (lease,) = two.lease("r", Shape()).leases
    finish(two, lease, 0.5)
    seen.append(next(stream))
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    with pytest.raises(Unavailable):
        seen.extend(stream)
    (lease,) = two.lease("r", Shape()).leases
    finish(two, lease, 0.5)
    seen += list(two.watch(study.id, after=seen[-1].number))
    assert [e.number for e in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].data["state"] == "completed"
