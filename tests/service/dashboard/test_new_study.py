"""Writing a study in the browser: what it will be, what is wrong with it, and its start."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ruamel.yaml import YAML

from service.db.studies import Studies
from service.results.group_reports import WORDS
from service.schemas.study_file import as_yaml
from tests.conftest import Api, make_study
from tests.service.helpers import login, study_of


def check(api: Api, text: str) -> str:
    answer = api.http.post("/new/check", data={"text": text})
    assert answer.status_code == 200
    return answer.text


def test_a_valid_text_says_what_the_study_will_be(api: Api) -> None:
    login(api)
    said = check(api, json.dumps(make_study(compare={"seeds": 3, "learning_rate": "shared"})))
    assert "4,800 parameters on 13 layers" in said
    assert "to confirm" in said
    assert "guideline" in said
    assert api.call("GET", "/studies").json()["items"] == [], "nothing is stored"


def test_structures_of_several_target_modules_are_counted_once(api: Api) -> None:
    login(api)
    choices = {"choices": {"attention": ["query", "value"], "all": "all-linear"}}
    body = make_study(search_space={"target_modules": choices})
    study = api.create(search_space={"target_modules": choices})
    with api.ctx.db.read() as session:
        plan = Studies(session).get(study["id"]).plan
    pairs = {(p.r1, p.r2) for one in plan.variants for p in one.structures}
    assert len(pairs) < sum(len(one.structures) for one in plan.variants)
    assert f"{len(pairs)} structures, " in check(api, json.dumps(body))


def test_faults_have_their_line_and_place(api: Api) -> None:
    login(api)
    said = check(api, as_yaml({**make_study(), "training": {"epochs": 0}, "colour": "red"}))
    assert "training.epochs" in said
    assert "colour" in said
    assert 'data-line="' in said
    assert "YAML" in check(api, "name: [")
    assert "holds no study" in check(api, "")
    assert "&lt;script&gt;" in check(api, "x<script>: 1")


def test_a_text_starts_a_study_or_a_group(api: Api) -> None:
    login(api)
    answer = api.http.post("/new", data={"text": as_yaml(make_study(name="from the page"))}, follow_redirects=False)
    assert answer.status_code == 303
    study = api.call("GET", answer.headers["location"]).json()
    assert study["name"] == "from the page"
    body = make_study(name="two")
    del body["budget"]
    body["budgets"] = [{"lora_rank": 2, "min_fill": 0}, {"lora_rank": 4, "min_fill": 0}]
    answer = api.http.post("/new", data={"text": as_yaml(body)}, follow_redirects=False)
    assert answer.headers["location"].startswith("/groups/")
    assert "2; what follows" in check(api, as_yaml(body))


def test_what_cannot_start_stays_in_the_text(api: Api) -> None:
    login(api)
    answer = api.http.post("/new", data={"text": "name: mine\n"})
    assert answer.status_code == 422
    assert "name: mine" in answer.text
    assert "Field required" in answer.text


def test_a_study_is_copied_as_text(api: Api) -> None:
    study = api.create(search={"seed": 7}, name="größer & 更好")
    login(api)
    page = api.http.get("/new", params={"source": study["id"]}).text
    assert "größer &amp; 更好" in page
    assert "seed: 7" in page
    assert api.http.get("/new", params={"source": "none"}).status_code == 404


@pytest.mark.parametrize("role", ["viewer"])
def test_viewers_neither_check_nor_start(api: Api, role: str) -> None:
    login(api, role)
    assert "Only members may start studies" in api.http.get("/new").text
    for path in ("/new", "/new/check"):
        assert api.http.post(path, data={"text": as_yaml(make_study())}).status_code == 403
    api.http.cookies.clear()
    assert api.http.get("/new", follow_redirects=False).status_code == 303
    assert api.http.post("/new/check", data={"text": "x"}).status_code == 403


def test_another_site_cannot_start_a_study(api: Api) -> None:
    login(api)
    forged = {"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    assert api.http.post("/new", data={"text": as_yaml(make_study())}, headers=forged).status_code == 403


@pytest.mark.parametrize("value", ["no", "1e-3", "010", "2020-01-01", "a: b", "#x", "'q'", "ä\n", " lead", "null"])
def test_text_of_a_study_reads_back_as_it_was(value: str) -> None:
    content: dict[str, Any] = {
        "name": value,
        "search_space": {"learning_rate": {"low": 1e-4, "high": 5e-3, "log": True}},
    }
    assert YAML(typ="safe", pure=True).load(as_yaml(content)) == content


def test_changes_are_made_and_refusals_are_said_on_the_page(api: Api) -> None:
    study = api.create()
    login(api)
    place = f"/studies/{study['id']}/change"
    answer = api.http.post(place, data={"trials": "9", "name": "renamed", "priority": "-3"}, follow_redirects=False)
    assert answer.status_code == 303
    now = study_of(api, study)
    assert (now["search"]["planned"], now["name"], now["spec"]["priority"]) == (9, "renamed", -3)
    few = api.http.post(place, data={"trials": "many"})
    assert few.status_code == 422
    assert "trials must be a whole number" in few.text
    assert "concurrency" in api.http.post(place, data={"concurrency": "0"}).text
    refused = api.http.post(place, data={"seeds": "5"})
    assert refused.status_code == 422
    assert "no confirmation" in refused.text
    paused = api.http.post(f"/studies/{study['id']}/resume")
    assert paused.status_code == 409
    assert "cannot be resumed" in paused.text


def test_viewers_change_nothing(api: Api) -> None:
    study = api.create()
    login(api, "viewer")
    page = api.http.get(f"/studies/{study['id']}").text
    assert "Change this study" not in page
    assert api.http.post(f"/studies/{study['id']}/change", data={"trials": "9"}).status_code == 403


def test_the_list_is_filtered_and_shows_best_and_verdict(api: Api) -> None:
    compare = {"seeds": 3, "learning_rate": "shared", "predictors": ["guideline"], "baselines": []}
    done = api.create(name="alpha done", search={"trials": 2}, compare=compare)
    api.run_all(lambda t: 0.5 + t["seed"] % 3 / 1000)
    api.create(name="beta <b>")
    login(api)
    page = api.http.get("/").text
    assert "alpha done" in page
    assert "beta &lt;b&gt;" in page
    assert "alpha done" not in api.http.get("/", params={"name": "beta"}).text
    assert "alpha done" in api.http.get("/", params={"state": "completed"}).text
    assert "No study fits" in api.http.get("/", params={"name": "gamma"}).text
    found = api.http.get("/headlines", params={"study": done["id"]}).json()
    best, verdict = found[done["id"]]
    assert best.startswith("0.50")
    assert verdict in WORDS.values()
    assert api.http.get("/headlines", params={"study": "none"}).json() == {}


def test_an_open_question_offers_more_seeds(api: Api) -> None:
    compare = {"seeds": 3, "learning_rate": "shared", "predictors": ["guideline"], "baselines": []}
    study = api.create(search={"trials": 2, "sampler": "random"}, compare=compare)
    order: dict[int, int] = {}

    def value(trial: dict[str, Any]) -> float:
        best = api.call("GET", f"/trials/{trial['id']}").json()["candidate"] == "best"
        order.setdefault(trial["seed"], len(order))
        return 0.5 + 0.02 * best + 0.03 * best * (order[trial["seed"]] % 3 == 0)

    api.run_all(value)
    login(api)
    page = api.http.get(f"/studies/{study['id']}").text
    assert "Add seeds, up to " in page
    wanted = page.split('name="seeds" value="')[1].split('"')[0]
    answer = api.http.post(f"/studies/{study['id']}/change", data={"seeds": wanted}, follow_redirects=False)
    assert answer.status_code == 303
    assert study_of(api, study)["state"] == "running"


def test_the_theme_is_part_of_the_page(api: Api) -> None:
    login(api)
    api.http.cookies.set("theme", "dark")
    assert 'data-theme="dark"' in api.http.get("/").text
    api.http.cookies.set("theme", "<x>")
    assert "data-theme" not in api.http.get("/").text


def test_text_that_grows_without_bound_is_refused(api: Api) -> None:
    login(api)
    bomb = "a: &a [x, x]\n" + "".join(f"b{k}: &b{k} [*a, *a]\n" for k in range(3))
    assert "aliases" in check(api, bomb)
    assert "characters" in check(api, "name: " + "x" * 50_000)
    assert "aliases" not in check(api, "name: 'a & b *c'")


@pytest.mark.parametrize("number", ["--5", "²", "1.5", "1e3"])
def test_what_is_no_whole_number_is_said(api: Api, number: str) -> None:
    study = api.create()
    login(api)
    answer = api.http.post(f"/studies/{study['id']}/change", data={"trials": number})
    assert answer.status_code == 422
    assert "whole number" in answer.text
