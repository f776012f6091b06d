"""Benchmark the service on SQLite and PostgreSQL: ``python -m benchmarks.service [--database D] [--only ask ...]``.

Every figure is the median of several runs on a fresh, migrated database. PostgreSQL is a private cluster of this run.
Each figure is printed beside its aim, whether or not it reaches it.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
import socket
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import event

from service.client import Client
from service.db.models import TrialRow
from service.domain.shape import Shape
from service.leases import acquisition

from .served import Service, fill, make_data, service, study_body, timed

RUNS = 3
FIGURES = ["ask", "throughput", "statements", "streams", "growth", "reports", "reads", "sleep"]


def ask_latency(made: Service, sampler: str, finished: int, asks: int = 40) -> tuple[float, float]:
    """Median and 95th percentile of POST /leases, each of which asks the sampler, in milliseconds."""
    with made.client() as client:
        study = client.create_study(study_body(sampler=sampler))
        fill(made, study.id, finished)
        client.lease("warm-up", Shape())  # reads the history once
        times = []
        for k in range(asks):
            times.append(timed(lambda: client.lease("bench", Shape(), host="bench")) * 1000)
            lease_id = None
            with made.context.db.read() as session:
                lease_id = session.query(TrialRow.lease_id).filter_by(study_id=study.id, number=finished + k).scalar()
            client.finish(lease_id, {"state": "completed", "metrics": {"accuracy": 0.5 + k / 1000}})
        client.delete_study(study.id, purge=True)
    return statistics.median(times), sorted(times)[int(0.95 * len(times))]


def throughput(made: Service, trials: int, workers: int = 8) -> float:
    """No-op trials per second, end to end over HTTP: lease, report, finish."""
    with made.client() as client:
        study = client.create_study(study_body(sampler="random", trials=trials, concurrency=workers))

        def work(k: int) -> None:
            with made.client() as mine:
                idle = 0
                while idle < 3:
                    leases = mine.lease(f"runner-{k}", Shape()).leases
                    idle = 0 if leases else idle + 1
                    for lease in leases:
                        mine.report(lease.id, [(1, {"accuracy": 0.5})])
                        mine.finish(lease.id, {"state": "completed", "metrics": {"accuracy": 0.5}})

        began = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
        seconds = time.perf_counter() - began
        assert client.study(study.id).search.finished == trials
        client.delete_study(study.id, purge=True)
    return trials / seconds


def report_rate(made: Service, values: int = 20_000, batch: int = 500) -> float:
    """Metric values per second accepted from one runner in batches, with logging on."""
    with made.client() as client:
        study = client.create_study(study_body(sampler="random"))
        (lease,) = client.lease("bench", Shape(), host="bench").leases
        began = time.perf_counter()
        for start in range(0, values // 2, batch):
            client.report(lease.id, [(start + k, {"accuracy": 0.5, "loss": 0.1}) for k in range(batch)])
        seconds = time.perf_counter() - began
        client.delete_study(study.id, purge=True)
    return values / seconds


def reads(made: Service, finished: int, calls: int = 40) -> dict[str, tuple[float, int]]:
    """95th percentile (ms) and size of the reads that a user of a long study makes."""
    with made.client() as client:
        study = client.create_study(study_body(sampler="random"))
    fill(made, study.id, finished)
    headers = {"Authorization": f"Bearer {made.token}"}
    found = {}
    with httpx.Client(base_url=made.url, headers=headers, timeout=60) as http:
        http.post("/login", data={"token": made.token})
        for name, path in (
            ("list of studies", "/api/v1/studies"),
            ("study", f"/api/v1/studies/{study.id}"),
            ("page of trials", f"/api/v1/studies/{study.id}/trials?limit=200&cursor={finished // 2}"),
            ("page (html)", f"/studies/{study.id}"),
            ("chart", f"/api/v1/studies/{study.id}/charts/history"),
            ("comparison", f"/api/v1/studies/{study.id}/comparison"),
        ):
            size = len(http.get(path).raise_for_status().content)
            times = [timed(lambda path=path: http.get(path)) * 1000 for _ in range(calls)]
            found[name] = sorted(times)[int(0.95 * len(times))], size
        # While a study runs, every read follows a change, so cached results are out of date.
        with made.client() as client:
            for name, path in (
                ("page (html) after a change", f"/studies/{study.id}"),
                ("chart after a change", f"/api/v1/studies/{study.id}/charts/history"),
                ("comparison after a change", f"/api/v1/studies/{study.id}/comparison"),
            ):
                times = []
                for k in range(15):
                    client.lease(f"change-{k}", Shape())
                    times.append(timed(lambda path=path: http.get(path)) * 1000)
                found[name] = sorted(times)[int(0.95 * len(times))], len(http.get(path).content)
    return found


def sleeping(made: Service, trials: int = 1000, slots: int = 16, sampler: str = "tpe") -> float:
    """Seconds for ``trials`` of one second each on ``slots`` runners."""
    with made.client() as client:
        study = client.create_study(study_body(sampler=sampler, trials=trials, concurrency=slots))

        def work(k: int) -> None:
            with made.client() as mine:
                while True:
                    leases = mine.lease(f"runner-{k}", Shape()).leases
                    if not leases and mine.study(study.id).state != "running":
                        return
                    for lease in leases:
                        time.sleep(1.0)
                        value = 1 - abs(lease.trial.params["learning_rate"] - 1e-3) * 100
                        mine.finish(lease.id, {"state": "completed", "metrics": {"accuracy": value}})

        began = time.perf_counter()
        with ThreadPoolExecutor(slots) as pool:
            list(pool.map(work, range(slots)))
        seconds = time.perf_counter() - began
        assert client.study(study.id).search.finished == trials
    return seconds


def statements_per_trial(made: Service, trials: int = 20) -> float:
    """SQL statements of a trial without BEGIN and COMMIT: of a lease, a report and a result; the median of trials.

    Some leases also look for expired leases, which is due twice a second.
    """
    from fastapi.testclient import TestClient

    from service.app import create_app
    from service.client.testing import AppTransport

    counted: list[int] = []

    def count(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        counted[-1] += not statement.startswith("BEGIN")

    engine = made.context.db.engine
    with TestClient(create_app(made.context), base_url="http://localhost") as http:
        client = Client("http://localhost", made.token, transport=AppTransport(http))
        study = client.create_study(study_body(sampler="random", trials=trials + 5))
        for k in range(trials + 5):
            if k == 5:
                event.listen(engine, "before_cursor_execute", count)
            counted.append(0)
            (lease,) = client.lease("bench", Shape(), host="bench").leases
            client.report(lease.id, [(1, {"accuracy": 0.5})])
            client.finish(lease.id, {"state": "completed", "metrics": {"accuracy": 0.5}})
        event.remove(engine, "before_cursor_execute", count)
        client.delete_study(study.id, purge=True)
    return statistics.median(counted[5:])


def growth(made: Service, loops: int = 5000, warm: int = 500) -> tuple[float, float]:
    """The server's memory in MB after ``warm`` loops of lease, report and result, and after ``loops`` more."""
    with made.client() as client:
        study = client.create_study(study_body(sampler="random"))
        held = []
        for k in range(warm + loops):
            if k == warm:
                held.append(made.process.memory_info().rss / 2**20)
            (lease,) = client.lease("bench", Shape(), host="bench").leases
            client.report(lease.id, [(1, {"accuracy": 0.5})])
            client.finish(lease.id, {"state": "completed", "metrics": {"accuracy": 0.5}})
        held.append(made.process.memory_info().rss / 2**20)
        client.delete_study(study.id, purge=True)
    return held[0], held[1]


def streams(made: Service, count: int = 200, rounds: int = 5, calls: int = 40) -> tuple[float, float, int, int]:
    """Medians in ms of a read without and beside open event streams; file handles before and after them.

    In each round half of the streams are cut hard, without a word to the server, and opened again.
    """
    headers = {"Authorization": f"Bearer {made.token}"}
    with made.client() as client:
        study = client.create_study(study_body(sampler="random"))
    path = f"/api/v1/studies/{study.id}/events"
    host, port = made.url.removeprefix("http://").split(":")
    asked = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {made.token}\r\n\r\n".encode()

    def opened() -> socket.socket:
        stream = socket.create_connection((host, int(port)), timeout=30)
        stream.sendall(asked)
        assert stream.recv(1024).startswith(b"HTTP/1.1 200")
        return stream

    def cut(stream: socket.socket) -> None:
        # A reset in place of a goodbye.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.close()

    with httpx.Client(base_url=made.url, headers=headers, timeout=60) as http:

        def read() -> float:
            times = [timed(lambda: http.get(f"/api/v1/studies/{study.id}").raise_for_status()) for _ in range(calls)]
            return statistics.median(times) * 1000

        def settled(most: int) -> int:
            deadline = time.monotonic() + 30
            while made.process.num_fds() > most and time.monotonic() < deadline:
                http.get("/healthz")
                time.sleep(0.2)
            return made.process.num_fds()

        # The pool of database connections fills with the first streams.
        for stream in [opened() for _ in range(count)]:
            cut(stream)
        before = settled(100)
        idle = read()
        held = [opened() for _ in range(count)]
        beside = []
        for _ in range(rounds):
            for stream in held[: count // 2]:
                cut(stream)
            held = held[count // 2 :] + [opened() for _ in range(count // 2)]
            beside.append(read())
        for stream in held:
            cut(stream)
        return idle, statistics.median(beside), before, settled(before)


def profile_asks(made: Service, finished: int) -> str:
    """Where the time of an ask goes, in this process on the same database."""
    with made.client() as client:
        study = client.create_study(study_body(sampler="tpe"))
    fill(made, study.id, finished)
    runner = acquisition.Runner("profile", Shape())
    acquisition.acquire(made.context, runner, 1)
    profile = cProfile.Profile()
    profile.enable()
    acquisition.acquire(made.context, runner, 10)
    profile.disable()
    out = io.StringIO()
    pstats.Stats(profile, stream=out).sort_stats("cumulative").print_stats(35)
    return out.getvalue()


def line(name: str, figure: str, aim: str = "") -> None:
    print(f"{name:<58} {figure:>24}   {aim}", flush=True)


def under_load(made: Service, chosen: Sequence[str]) -> None:
    """What a server spends on trials and streams that come and go."""
    if "statements" in chosen:
        line("SQL statements a trial", f"{statements_per_trial(made):.1f}", "aim 25")
    if "streams" in chosen:
        idle, beside, before, after = streams(made)
        line("read beside 200 event streams: idle / beside", f"{idle:.1f} / {beside:.1f} ms", "aim twice")
        line("file handles before and after", f"{before} / {after}", "aim the same")
    if "growth" in chosen:
        first, last = growth(made)
        line("server's memory after 500 / 5,500 loops", f"{first:.0f} / {last:.0f} MB", "aim 5 % more")


def measure(kind: str, new_url: Callable[[], str], data: Path, options: argparse.Namespace) -> None:
    print(f"\n{kind}")
    chosen = options.only
    with service(new_url(), data) as made:
        base = made.process.memory_info().rss / 2**20
        if "ask" in chosen:
            for sampler in options.samplers:
                for finished, aim in ((0, ""), (1000, "40 ms"), (10_000, "60 ms")):
                    runs = [ask_latency(made, sampler, finished) for _ in range(RUNS)]
                    p50, p95 = (statistics.median(x) for x in zip(*runs, strict=True))
                    line(
                        f"ask, {sampler}, {finished} finished: p50 / p95", f"{p50:.1f} / {p95:.1f} ms", f"aim p50 {aim}"
                    )
        if "throughput" in chosen:
            rates = [throughput(made, 400) for _ in range(RUNS)]
            line(
                "no-op trials a second, 8 racing workers",
                f"{statistics.median(rates):.0f}",
                "aim 50 on PostgreSQL, 60 on SQLite",
            )
        under_load(made, chosen)
        if "reports" in chosen:
            rates = [report_rate(made) for _ in range(RUNS)]
            line("metric values a second", f"{statistics.median(rates):.0f}", "aim 1000")
        if "sleep" in chosen:
            seconds = sleeping(made)
            line(
                "1,000 one-second trials on 16 slots (tpe, history 0 to 1,000)",
                f"{seconds:.1f} s",
                "ideal 62.5, aim 66",
            )
    if "reads" in chosen:
        with service(new_url(), data) as made:
            for name, (p95, size) in reads(made, 50_000).items():
                line(f"{name} at 50,000 trials: p95, size", f"{p95:.0f} ms, {size / 2**20:.2f} MB", "aim 100 ms, 1 MB")
            with made.client() as client:
                client.lease("memory", Shape())
            after = made.process.memory_info().rss / 2**20
            line("server's memory: at start / at 50,000 trials", f"{base:.0f} / {after:.0f} MB")
    if options.profile:
        with service(new_url(), data) as made:
            print(profile_asks(made, 10_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--samplers", nargs="+", default=["tpe", "random"])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=FIGURES,
        default=FIGURES,
    )
    parser.add_argument("--profile", action="store_true", help="also print where an ask's time goes")
    options = parser.parse_args()
    print(f"{psutil.cpu_count()} CPUs, {psutil.virtual_memory().total / 2**30:.0f} GiB; medians of {RUNS} runs")
    with tempfile.TemporaryDirectory(prefix="cdka-bench-data-") as folder:
        data = Path(folder)
        make_data(data)
        if options.database in ("sqlite", "both"):
            count = iter(range(1000))
            measure("SQLite", lambda: f"sqlite:///{folder}/bench-{next(count)}.db", data, options)
        if options.database in ("postgresql", "both"):
            from tests.postgres import Cluster

            cluster = Cluster()
            try:
                names = iter(range(1000))
                measure("PostgreSQL 15", lambda: cluster.create(f"bench_{next(names)}"), data, options)
            finally:
                cluster.stop()


if __name__ == "__main__":
    main()
