"""The whole loop with only real parts: uvicorn, SQLite, Ray, MiniLM on news articles, Chromium."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import cdka
from service.cli.demo import MODEL_NAME

from .conftest import SLICE, System


@pytest.mark.ray
@pytest.mark.browser
def test_a_study_from_rest_to_browser(system: System, tmp_path: Path) -> None:
    study = system.create()
    ended = system.ended(study.id)
    assert (ended.state, ended.reason) == ("completed", None)
    trials = list(system.client.trials(study.id))
    searched = [t for t in trials if t.phase == "search"]
    confirmed = [t for t in trials if t.phase == "confirmation"]
    assert len(searched) == SLICE.trials
    assert all(t.state in ("completed", "pruned") for t in searched)
    assert all(t.state == "completed" and t.attempts == 1 for t in confirmed)
    assert all(t.resources["threads"] == 1 for t in trials)
    comparison = system.client.comparison(study.id)
    assert {c.name for c in comparison.candidates} == {"best", "guideline", "guideline_published", "lora"}
    assert all(0 <= v <= 1 for c in comparison.candidates for v in c.values)
    # The search starts with the guideline's choice, which may stay the best.
    (guideline,) = (c for c in comparison.candidates if c.name == "guideline")
    won = any("identical with 'best'" in flag for flag in guideline.flags)
    words = "the search found nothing better than the guideline" if won else "too few seeds for a verdict"
    assert comparison.predictors[0].verdict.startswith(words)

    # PEFT can load the stored adapter, and it has the size that the budget counted.
    best = next(t for t in confirmed if t.candidate == "best")
    base = AutoModelForSequenceClassification.from_pretrained(
        system.server.settings.data_dirs[0] / MODEL_NAME, num_labels=5
    )
    loaded = PeftModel.from_pretrained(base, best.artifact)
    counted = sum(p.numel() for n, p in loaded.named_parameters() if "cdka_" in n)
    assert counted == best.parameters <= study.budget.max_parameters
    assert isinstance(loaded.base_model, cdka.CdkaModel)

    _look_in_the_browser(system, study.id, tmp_path, words)


def _look_in_the_browser(system: System, study_id: str, tmp_path: Path, words: str) -> None:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium is not None, "install Debian's chromium (as .ci/run does)"
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-quic"])
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("dialog", lambda dialog: dialog.accept())
        outside: list[str] = []
        page.on(
            "request", lambda r: None if r.url.startswith(system.server.settings.server_url) else outside.append(r.url)
        )
        page.goto(system.server.login_url())  # the page logs in with the token in the fragment
        page.wait_for_url(f"{system.server.settings.server_url}/")
        assert "token" not in page.url
        page.get_by_role("link", name="bbc-news").first.click()
        page.wait_for_selector(".chart .main-svg")
        assert page.locator("#trials tbody tr").count() == len(list(system.client.trials(study_id)))
        assert page.locator("#comparison tbody tr").count() == 4
        body = page.inner_text("main")
        assert words in body
        assert page.locator(".summary .state").inner_text() == "completed"
        assert page.locator(".chart").first.locator(".point").count() >= SLICE.trials
        assert words in page.inner_text(".answer .said").lower()
        assert page.locator("#map .mark", has_text="best found").count() == 1
        assert page.locator("[data-title*='loud'], [data-title*='Share']").count() == 0, "no chart is uploaded"
        _check_a_narrow_window(page)
        _check_a_trial(page)
        _check_live(page, system)
        _check_a_new_study(page, system)
        page.goto(f"{system.server.settings.server_url}/operation")
        assert page.locator("#runners tbody tr").count() >= 1
        assert "study.create" in page.inner_text("#audit")
        page.goto(f"{system.server.settings.server_url}/docs")
        page.wait_for_selector(".opblock", timeout=20_000)
        assert page.locator(".opblock").count() > 40
        browser.close()
    assert problems == []
    assert [u for u in outside if not u.startswith(("data:", "blob:"))] == []


def _check_a_narrow_window(page: Any) -> None:
    """On a telephone tables scroll within the page, and the page itself does not."""
    wide = page.viewport_size
    page.set_viewport_size({"width": 390, "height": 900})
    # Charts follow the window a moment later.
    for _ in range(100):
        if (width := page.evaluate("document.documentElement.scrollWidth")) == 390:
            break
        page.wait_for_timeout(100)
    assert width == 390
    page.set_viewport_size(wide)


def _check_a_trial(page: Any) -> None:
    """A cell of the map leads to its trials, and a trial's number to its page."""
    page.locator("#map td.marked a").first.click()
    page.wait_for_url("**r1=**")
    states = page.locator("#trials tbody tr td:nth-child(6)").all_inner_texts()
    assert len(set(states)) == 1
    page.locator("#trials tbody a").first.click()
    page.wait_for_selector(".chart .main-svg")
    assert page.locator("h1").inner_text().startswith("Trial ")
    assert "learning rate" in page.inner_text("main")
    page.go_back()
    page.wait_for_selector("#trials")


def _check_a_new_study(page: Any, system: System) -> None:
    """A study is written beside what it will be; faults lead to their line."""
    page.goto(f"{system.server.settings.server_url}/new")
    page.fill("#text", "name: x\ntraining: {epochs: 0}\n")
    page.wait_for_selector("#checked .faults")
    page.locator("#checked [data-line='2']").first.click()
    marked = page.evaluate("(t => t.value.slice(t.selectionStart, t.selectionEnd))(document.getElementById('text'))")
    assert marked == "training: {epochs: 0}"
    study = next(iter(system.client.studies(name="bbc-news")))
    page.goto(f"{system.server.settings.server_url}/new?source={study.id}")
    page.wait_for_selector("#checked table", timeout=60_000)
    assert "parameters on" in page.inner_text("#checked")


def _check_live(page: Any, system: System) -> None:
    """An open study page shows changes of the study."""
    study = system.create(search={"trials": 1})
    page.goto(f"{system.server.settings.server_url}/studies/{study.id}")
    system.running_trial(study.id)
    page.wait_for_selector(".summary .state.running", timeout=20_000)
    page.wait_for_selector("#running progress", timeout=20_000)
    page.get_by_role("button", name="Cancel study").click()
    page.wait_for_selector(".summary .state.cancelled", timeout=20_000)
    assert system.client.study(study.id).state == "cancelled"
    ended = system.ended(study.id)
    assert ended.search.running <= 1
