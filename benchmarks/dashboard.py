"""Measure the study page in Chromium, beside Optuna Dashboard: ``python -m benchmarks.dashboard``.

Both show the same search of 1,000, 5,000 and 50,000 finished trials, ours from SQLite and Optuna's from the database
that our export writes. Each visit is a new browser with an empty cache; the first follows the server's start. Figures
are medians of the visits. Optuna Dashboard runs from an environment of its own:

    python -m venv optuna-dashboard && optuna-dashboard/bin/pip install optuna-dashboard==0.21.0
    python -m benchmarks.dashboard --peer optuna-dashboard/bin/optuna-dashboard

Not like for like: Optuna Dashboard draws more charts at once, ours one of twelve beside history and differences.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import psutil

from service.cli.processes import free_port
from service.domain.shape import Shape
from service.results.optuna_export import as_optuna

from .served import Service, fill, make_data, service, study_body, timed

SIZES = (1_000, 5_000, 50_000)
VISITS = 3
# A page that has drawn nothing by then is given up.
PATIENCE = 200.0
_LONG_TASKS = """
window.longest = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.longest = Math.max(window.longest, entry.duration);
}).observe({ type: "longtask", buffered: true });
"""


@dataclass(frozen=True, slots=True)
class Visit:
    """What one visit took: seconds, seconds of the main thread, KB on the wire, elements, milliseconds."""

    painted: float
    drawn: float
    main_thread: float
    kilobytes: float
    elements: float
    longest_task: float


def visit(browser: Any, address: str, log_in: str | None, wait: Callable[[Any], None]) -> Visit | None:
    """Open a page with an empty cache and ``wait`` until it is drawn; ``None`` if it never is."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    try:
        if log_in is not None:
            page.goto(log_in)
            page.wait_for_url("**/")
            page.goto("about:blank")
        devtools = context.new_cdp_session(page)
        devtools.send("Network.enable")
        devtools.send("Network.clearBrowserCache")
        devtools.send("Performance.enable")
        received = [0.0]
        devtools.on("Network.loadingFinished", lambda e: received.__setitem__(0, received[0] + e["encodedDataLength"]))
        page.add_init_script(_LONG_TASKS)
        before = _task_seconds(devtools)
        began = time.perf_counter()
        page.goto(address, wait_until="commit", timeout=PATIENCE * 1000)
        wait(page)
        seconds = time.perf_counter() - began
        painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0") / 1000
        page.wait_for_timeout(300)
        return Visit(
            painted,
            seconds,
            _task_seconds(devtools) - before,
            received[0] / 1000,
            page.evaluate("document.querySelectorAll('*').length"),
            page.evaluate("window.longest ?? 0"),
        )
    except Exception as error:  # a page that breaks is a figure, too
        print(f"    {type(error).__name__}: {str(error)[:120]}")
        return None
    finally:
        context.close()


def _task_seconds(devtools: Any) -> float:
    found = devtools.send("Performance.getMetrics")["metrics"]
    return float(next(m["value"] for m in found if m["name"] == "TaskDuration"))


def median(visits: list[Visit]) -> Visit:
    """Each figure's median."""
    return Visit(*(statistics.median(values) for values in zip(*map(astuple, visits), strict=True)))


def show(name: str, trials: int, visits: list[Visit | None], memory: float) -> None:
    """Print a line of the table."""
    done = [v for v in visits if v is not None]
    if not done:
        print(f"| {name} | {trials:,} | nothing after {PATIENCE:.0f} s | | | | | | {memory:,.0f} |", flush=True)
        return
    v = median(done)
    cells = [f"{v.painted:.2f}", f"{v.drawn:.2f}", f"{v.main_thread:.2f}", f"{v.kilobytes:,.0f}"]
    cells += [f"{v.elements:,.0f}", f"{v.longest_task:.0f}", f"{memory:,.0f}"]
    print(f"| {name} | {trials:,} | {' | '.join(cells)} |", flush=True)


def ours_drawn(page: Any) -> None:
    """Wait for our charts, each of which notes what it has drawn."""
    charts = "[...document.querySelectorAll('[data-chart]')]"
    deadline = time.perf_counter() + PATIENCE
    while not page.evaluate(f"{charts}.length >= 3 && {charts}.every((chart) => chart.drawn)"):
        if time.perf_counter() > deadline:
            raise TimeoutError("not drawn")
        time.sleep(0.02)


def peer_drawn(page: Any) -> None:
    """Wait for six charts; a page that is busy for minutes answers no question, so the browser watches."""
    page.wait_for_selector(":nth-match(.js-plotly-plot .main-svg, 6)", state="attached", timeout=PATIENCE * 1000)


def ours(browser: Any, made: Service, trials: int) -> tuple[str, dict[str, float]]:
    """Measure our page; returns the study's id, and seconds of exports and of the page after a change."""
    with made.client() as client:
        study = client.create_study(study_body(sampler="random"))
    fill(made, study.id, trials)
    address = f"{made.url}/studies/{study.id}"
    log_in = f"{made.url}/login#token={made.token}"
    first = visit(browser, address, log_in, ours_drawn)
    show("ours, after the start", trials, [first], made.process.memory_info().rss / 2**20)
    again = [visit(browser, address, log_in, ours_drawn) for _ in range(VISITS)]
    show("ours", trials, again, made.process.memory_info().rss / 2**20)
    return study.id, timings(made, study.id)


def timings(made: Service, study_id: str) -> dict[str, float]:
    """Seconds of CSV and JSON exports, and the 95th percentile of the page right after a change."""
    found = {}
    headers = {"Authorization": f"Bearer {made.token}"}
    for form in ("csv", "json"):
        request = urllib.request.Request(f"{made.url}/api/v1/studies/{study_id}/export?format={form}", headers=headers)
        found[form] = timed(lambda request=request: _drain(request))
    times = []
    with made.client() as client:
        for k in range(15):
            client.lease(f"change-{k}", Shape())
            request = urllib.request.Request(f"{made.url}/studies/{study_id}", headers=headers)
            times.append(timed(lambda request=request: _drain(request)))
    found["page after a change, p95"] = sorted(times)[int(0.95 * len(times))]
    return found


def _drain(request: urllib.request.Request) -> None:
    with urllib.request.urlopen(request, timeout=600) as answer:  # our own server
        while answer.read(2**20):
            pass


@contextmanager
def peer(command: str, database: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Optuna Dashboard on a database."""
    port = free_port(20_000 + secrets.randbelow(12_000))
    child = subprocess.Popen(
        [command, f"sqlite:///{database}", "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/dashboard", timeout=5).close()
                break
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        yield address, psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait(20)


def main() -> None:
    """Print one table, and what exports and the page after a change take."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--peer", help="the command optuna-dashboard, of an environment of its own")
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    assert chromium is not None, "install Debian's chromium"
    print(f"{psutil.cpu_count()} CPUs; medians of {VISITS} visits\n")
    print(
        "| page | trials | first paint, s | drawn, s | main thread, s | KB | elements | longest task, ms | server, MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    others: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="cdka-bench-") as folder, sync_playwright() as playwright:
        data = Path(folder)
        make_data(data)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-quic"])
        for trials in options.sizes:
            with service(f"sqlite:///{data}/bench-{trials}.db", data) as made:
                study_id, others[trials] = ours(browser, made, trials)
                database = as_optuna(made.context, study_id, None) if options.peer else None
            if database is not None:
                with peer(options.peer, database) as (address, process):
                    page = f"{address}/dashboard/studies/1"
                    shown = [visit(browser, page, None, peer_drawn)]
                    show("Optuna Dashboard", trials, shown, process.memory_info().rss / 2**20)
                database.unlink()
        browser.close()
    print()
    for trials, found in others.items():
        print(f"{trials:,} trials: {', '.join(f'{name} {seconds:.2f} s' for name, seconds in found.items())}")


if __name__ == "__main__":
    main()
