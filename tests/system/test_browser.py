"""The dashboard in Chromium on studies whose results are made up: what one does there, and what it shows."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.cli.processes import Server, free_port
from service.client import Client
from service.domain.shape import Shape
from service.settings import Settings
from tests.conftest import make_study

from .accessibility import AXE, check_access
from .conftest import PATIENCE, until

pytestmark = [pytest.mark.slow, pytest.mark.browser]
SEARCH = {"trials": 40, "concurrency": 2, "sampler": "random", "start": ["guideline"]}
COMPARE = {"seeds": 3, "learning_rate": "shared", "predictors": ["guideline", "alignment"], "baselines": ["lora"]}
NAMES = ("Größe <b>", "比较研究", "مقارنة", "🔬")


@dataclass
class Seen:
    """A server with studies, and a browser on it."""

    client: Client
    viewer: str
    address: str
    study: Any
    group: Any
    login: str
    browser: Any


def value_of(trial: Any) -> float:
    """A result that grows with r2 and differs a little between trials."""
    return 0.6 + 0.03 * math.log2(trial.params.get("r2", 1)) + 0.0005 * ((7 * trial.number + trial.seed) % 11)


def finish(client: Client, most: int = 1000) -> None:
    """Give results to every trial that there is to run."""
    for _ in range(most):
        leases = client.lease("seeded", Shape()).leases
        if not leases:
            return
        (lease,) = leases
        value = value_of(lease.trial)
        client.report(lease.id, [(k + 1, {"accuracy": value - 0.1 / (k + 1)}) for k in range(3)], total_steps=4)
        client.finish(
            lease.id,
            {"state": "completed", "metrics": {"accuracy": value, "loss": 1 - value}, "resources": {"seconds": 2.0}},
        )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Iterator[Seen]:
    from playwright.sync_api import sync_playwright

    home = tmp_path_factory.mktemp("dashboard")
    settings = Settings(home=home, data_dirs=[data_root], port=free_port(19765), rate_limit=0)
    server = Server(settings, with_pool=False)
    server.start()
    chromium = shutil.which("chromium")
    assert chromium is not None, "install Debian's chromium (as .ci/run does)"
    client = Client(settings.server_url, (home / "admin-token").read_text().strip(), attempts=8)
    try:
        study = client.create_study(make_study(name="seeded", search=SEARCH, compare=COMPARE))
        group = client.create_group(
            {
                **{k: v for k, v in make_study(name="budgets", search={"trials": 3}).items() if k != "budget"},
                "budgets": [{"lora_rank": 2}, {"lora_rank": 4}],
                "compare": {**COMPARE, "seeds": 2},
            }
        )
        finish(client)
        for name in NAMES:
            client.create_study(make_study(name=name))
        viewer = client.create_token("viewer", "viewer").token
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-quic"])
            yield Seen(client, viewer, settings.server_url, study, group, server.login_url(), browser)
            browser.close()
    finally:
        client.close()
        server.stop()


@pytest.fixture
def page(seen: Seen) -> Iterator[Any]:
    """A page of an admin. Fails on any error in its console and on any request to another host."""
    problems: list[str] = []
    made = seen.browser.new_page(viewport={"width": 1440, "height": 1000}, accept_downloads=True)
    made.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    made.on("pageerror", lambda e: problems.append(str(e)))
    made.on("dialog", lambda dialog: dialog.accept())
    made.on(
        "request",
        lambda r: None if r.url.startswith((seen.address, "data:", "blob:")) else problems.append(f"asked {r.url}"),
    )
    made.goto(seen.login)
    made.wait_for_url(f"{seen.address}/")
    yield made
    made.close()
    assert problems == []


def until_true(page: Any, expression: str, seconds: float = 30) -> None:
    """Wait for a JavaScript expression. Playwright's own way compiles text in the page, which our policy forbids."""
    until(lambda: page.evaluate(expression), seconds / PATIENCE, expression)


def explore(page: Any, kind: str) -> None:
    """Choose a chart and wait until it is drawn."""
    page.wait_for_selector("#explored .main-svg")
    page.select_option("select[name=chart]", kind)
    until_true(page, f"document.getElementById('explored').drawn?.includes('/charts/{kind}')")


def drag(page: Any, chart: str, left: float, top: float, right: float, bottom: float) -> None:
    """Drag over a part of a chart; the numbers are shares of its size."""
    area = page.locator(f"{chart} .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    page.mouse.move(box["x"] + left * box["width"], box["y"] + top * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + right * box["width"], box["y"] + bottom * box["height"], steps=6)
    page.mouse.up()


def test_every_chart_is_drawn_and_a_link_shows_a_colleague_the_same(page: Any, seen: Seen) -> None:
    page.goto(f"{seen.address}/studies/{seen.study.id}")
    kinds = page.eval_on_selector_all("select[name=chart] option", "options => options.map(o => o.value)")
    assert len(kinds) >= 12
    page.wait_for_selector("#explored .main-svg")
    for kind in [k for k in kinds if k != "parallel"]:
        explore(page, kind)
        assert page.locator("#explored").evaluate("e => e.data.length + (e.layout.annotations ?? []).length") > 0, kind
    explore(page, "contour")
    page.select_option("select[name=x]", "alpha")
    page.select_option("select[name=y]", "r2")
    until_true(page, "document.getElementById('explored').drawn?.includes('y=r2')")
    assert "chart=contour" in page.url
    other = seen.browser.new_page()
    other.goto(seen.login)
    other.wait_for_url(f"{seen.address}/")
    other.goto(page.url)
    other.wait_for_selector("#explored .main-svg")
    titles = other.locator("#explored").evaluate("e => [e.layout.xaxis.title.text, e.layout.yaxis.title.text]")
    assert titles == ["alpha", "r2"]
    other.close()


def test_a_marked_range_filters_table_and_charts_and_a_click_opens_the_trial(page: Any, seen: Seen) -> None:
    page.goto(f"{seen.address}/studies/{seen.study.id}?chart=parallel")
    page.wait_for_selector("#explored .main-svg")
    drag(page, "#explored", 0.9, 0.02, 0.99, 0.3)
    page.wait_for_url("**where=**")
    page.wait_for_selector("#explored .main-svg")
    where = page.input_value("input[name=where]")
    assert "<= accuracy <=" in where
    low = float(where.split(" <= ")[0])
    shown = page.locator("#trials tbody tr").count()
    fitting = [t for t in seen.client.trials(seen.study.id) if t.metrics["accuracy"] >= low and t.phase == "search"]
    assert 0 < len(fitting) <= shown < 40 + 12
    history = page.locator(".chart").first
    history.locator(".main-svg").first.wait_for()
    assert history.evaluate("e => e.data[0].x.length") == len(fitting)
    explore(page, "slice")
    point = page.locator("#explored .point").first
    number = page.locator("#explored").evaluate("e => e.data[0].customdata[0]")
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#explored .hovertext")
    assert "learning_rate=" in page.locator("#explored .hovertext").first.text_content()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_url("**/trials/**")
    assert page.locator("h1").inner_text().startswith(f"Trial {number}")
    page.go_back()
    page.wait_for_selector("#explored .main-svg")
    assert "chart=slice" in page.url
    assert page.input_value("input[name=where]") == where


def test_a_chart_is_read_as_a_table_and_taken_away(page: Any, seen: Seen) -> None:
    page.goto(f"{seen.address}/studies/{seen.study.id}?chart=slice&x=r2")
    page.wait_for_selector("#explored .main-svg")
    page.get_by_role("button", name="Table", exact=True).click()
    page.wait_for_selector("#explored-table tbody tr")
    heads = page.locator("#explored-table th").all_inner_texts()
    assert heads == ["series", "r2", "accuracy (validation)", "note"]
    assert page.locator("#explored-table tbody tr").count() == 40
    for name, end in (("PNG", b"\x89PNG"), ("SVG", b"<svg")):
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        assert Path(download.value.path()).read_bytes().lstrip().startswith(end)


def test_the_table_sorts_filters_and_compares(page: Any, seen: Seen) -> None:
    page.goto(f"{seen.address}/studies/{seen.study.id}")
    page.locator("#trials th a", has_text="accuracy").click()
    page.wait_for_url("**sort=-accuracy**")
    values = [float(v) for v in page.locator("#trials tbody td:nth-last-child(2)").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    page.fill("input[name=where]", "r2 = 8 and phase = search")
    page.keyboard.press("Enter")
    page.wait_for_url("**where=r2**")
    sizes = page.locator("#trials tbody td:nth-child(6)").all_inner_texts()
    assert sizes
    assert all(s.split(", ")[1] == "8" for s in sizes)
    page.fill("input[name=where]", "r2 is 8")
    page.keyboard.press("Enter")
    page.wait_for_selector("#filter-fault")
    page.goto(f"{seen.address}/studies/{seen.study.id}")
    for k in range(3):
        page.locator("#trials input[name=trial]").nth(k).check()
    page.get_by_role("button", name="Compare selected").click()
    page.wait_for_selector("#compared")
    assert page.locator("#compared thead th").count() == 4
    page.wait_for_selector(".chart .main-svg")


def test_a_zoomed_chart_and_a_selection_survive_live_updates(page: Any, seen: Seen) -> None:
    study = seen.client.create_study(make_study(name="live", search={"trials": 30, "concurrency": 4}, priority=10))
    for _ in range(5):
        (lease,) = seen.client.lease("live", Shape()).leases
        seen.client.finish(lease.id, {"state": "completed", "metrics": {"accuracy": value_of(lease.trial)}})
    page.goto(f"{seen.address}/studies/{study.id}")
    page.wait_for_selector(".chart .main-svg")
    history = page.locator(".chart").first
    until_true(page, "document.querySelector('.chart').data?.[0].x.length === 5")
    drag(page, ".chart", 0.2, 0.2, 0.8, 0.8)
    zoomed = history.evaluate("e => e.layout.xaxis.range")
    page.locator("#trials input[name=trial]").first.check()
    for _ in range(3):
        (lease,) = seen.client.lease("live", Shape()).leases
        seen.client.finish(lease.id, {"state": "completed", "metrics": {"accuracy": value_of(lease.trial)}})
    until_true(page, "document.querySelector('.chart').data[0].x.length === 8")
    assert history.evaluate("e => e.layout.xaxis.range") == zoomed
    assert page.locator("#trials input[name=trial]").first.is_checked()
    assert page.locator("#announce").inner_text()
    seen.client.cancel_study(study.id)


def test_a_budget_is_explored_with_a_slider_and_becomes_a_study(page: Any, seen: Seen) -> None:
    page.goto(f"{seen.address}/explore")
    page.fill("input[name=model]", "tiny-bert")
    page.wait_for_selector("#foreseen .mark")
    eight = page.locator("#foreseen dd").first.inner_text()
    page.locator("#rank").focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    until_true(page, f"!document.querySelector('#foreseen dd').innerText.includes('{eight}')")
    assert page.locator("output").inner_text() == "4"
    assert "rank=4" in page.url
    page.get_by_role("link", name="Start a study with this budget").click()
    page.wait_for_url("**/new?**")
    assert "budget: {lora_rank: 4}" in page.input_value("#text")
    assert 'model: {path: "tiny-bert"}' in page.input_value("#text")


def test_names_are_shown_as_text(page: Any, seen: Seen) -> None:
    page.goto(f"{seen.address}/")
    shown = page.inner_text("main")
    for name in NAMES:
        assert name in shown
    for name in NAMES:
        page.goto(f"{seen.address}/")
        page.get_by_role("link", name=name, exact=True).click()
        page.wait_for_selector("h1")
        assert page.locator("h1").inner_text() == name


def test_a_viewer_has_no_buttons_that_change_something(seen: Seen) -> None:
    page = seen.browser.new_page()
    page.goto(f"{seen.address}/login#token={seen.viewer}")
    page.wait_for_url(f"{seen.address}/")
    trial = next(iter(seen.client.trials(seen.study.id))).id
    for place in (f"/studies/{seen.study.id}", f"/trials/{trial}", "/new", f"/groups/{seen.group.id}", "/operation"):
        page.goto(seen.address + place)
        forms = page.eval_on_selector_all("form[method=post]", "all => all.map(f => new URL(f.action).pathname)")
        assert [f for f in forms if not f.endswith("/logout")] == [], place
        buttons = page.eval_on_selector_all("button[formmethod=post]", "all => all.length")
        assert buttons == 0, place
    page.close()


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 390), ("light", 390), ("dark", 1440)])
def test_axe_core_finds_nothing_on_any_page(seen: Seen, theme: str, width: int) -> None:
    context = seen.browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    page.goto(f"{seen.address}/login")
    check_access(page, f"/login ({theme}, {width})")
    page.goto(seen.login)
    page.wait_for_url(f"{seen.address}/")
    trials = [t.id for t in seen.client.trials(seen.study.id)][:3]
    study = f"/studies/{seen.study.id}"
    own = [study, f"{study}?where=nonsense", f"{study}?group=1", f"{study}?chart=contour", f"/trials/{trials[0]}"]
    own += [f"/compare?{'&'.join(f'trial={t}' for t in trials)}", "/compare", f"/new?source={seen.study.id}"]
    own.append("/studies/none")
    for place in (
        "/",
        *own,
        f"/groups/{seen.group.id}",
        "/explore?model=tiny-bert&rank=4",
        "/predictors",
        "/operation",
    ):
        page.goto(seen.address + place)
        page.wait_for_load_state()
        if page.locator("#explored").count():
            page.wait_for_selector("#explored .main-svg")
        check_access(page, f"{place} ({theme}, {width})")
    context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_api_page_has_enough_contrast_in_either_theme(seen: Seen, theme: str) -> None:
    context = seen.browser.new_context(color_scheme=theme)
    page = context.new_page()
    page.goto(f"{seen.address}/docs")
    page.wait_for_selector(".opblock")
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    # What is left is how Swagger UI lays out its own page.
    assert {v["id"] for v in found} <= {"nested-interactive", "heading-order"}
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 20, 25)"}[theme]
    context.close()
