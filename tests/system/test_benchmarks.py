"""The benchmarks run, in a tiny size: a change of the client or the tables does not break them unseen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from benchmarks import dashboard
from benchmarks import service as figures
from benchmarks.served import Service, fill, make_data, service, study_body

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data = tmp_path_factory.mktemp("bench")
    make_data(data)
    with service(f"sqlite:///{data}/bench.db", data) as running:
        yield running


def test_every_figure_of_the_service_is_measured(made: Service) -> None:
    middle, high = figures.ask_latency(made, "tpe", 30, asks=3)
    assert 0 < middle <= high
    assert figures.throughput(made, 4, workers=2) > 0
    assert figures.report_rate(made, values=40, batch=10) > 0
    assert figures.statements_per_trial(made, trials=2) > 0
    assert min(figures.growth(made, loops=3, warm=2)) > 0
    assert figures.sleeping(made, trials=2, slots=2, sampler="random") >= 1.0
    found = figures.reads(made, 60, calls=2)
    assert {"comparison", "comparison after a change", "page (html) after a change"} <= found.keys()
    assert all(p95 > 0 and size > 0 for p95, size in found.values())


@pytest.mark.browser
def test_the_page_is_measured_in_a_browser(made: Service, capsys: pytest.CaptureFixture[str]) -> None:
    from playwright.sync_api import sync_playwright

    with made.client() as client:
        study = client.create_study(study_body(sampler="random"))
    fill(made, study.id, 60)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        log_in = f"{made.url}/login#token={made.token}"
        seen = dashboard.visit(browser, f"{made.url}/studies/{study.id}", log_in, dashboard.ours_drawn)
        browser.close()
    assert seen is not None
    assert 0 < seen.painted < seen.drawn
    assert seen.kilobytes > 100
    assert seen.elements > 500
    dashboard.show("ours", 60, [seen, None], 1.0)
    assert capsys.readouterr().out.startswith("| ours | 60 | ")
    taken = dashboard.timings(made, study.id)
    assert set(taken) == {"csv", "json", "page after a change, p95"}
