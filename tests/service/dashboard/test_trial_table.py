"""The table of trials: filters, columns, groups, selections, and what its address says."""

from __future__ import annotations

import csv
import io
import re
from html import unescape
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest

from service.dashboard.trial_table import Query
from tests.conftest import Api
from tests.service.helpers import login, trials_of


def made(api: Api, **changes: Any) -> dict[str, Any]:
    changes = {"search": {"trials": 8, "sampler": "random", "start": []}, "compare": {"seeds": 0}} | changes
    study = api.create(**changes)
    api.run_all(lambda t: 0.5 + 0.02 * t["number"] if t["phase"] == "search" else 0.9 + 0.001 * t["seed"])
    login(api)
    return study


def shown(api: Api, study: dict[str, Any], **query: Any) -> str:
    answer = api.http.get(f"/studies/{study['id']}?{urlencode(query)}")
    assert answer.status_code == 200, answer.text
    text = answer.text
    return unescape(text[text.index('id="trials-title"') :])


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r'aria-label="Select trial (\d+)"', text)]


def test_an_expression_filters_the_table(api: Api) -> None:
    study = made(api)
    assert numbers(shown(api, study, where="accuracy >= 0.6 and state = completed")) == [7, 6, 5]
    assert numbers(shown(api, study, where="number in (1, 3)", sort="oldest")) == [1, 3]
    trials = trials_of(api, study)
    fitting = [t["number"] for t in trials if t["params"]["r1"] == 2 or t["params"]["alpha"] > 16]
    assert numbers(shown(api, study, where="r1 = 2 or alpha > 16", sort="number")) == fitting
    assert "No trial fits." in shown(api, study, where="accuracy > 5")


def test_a_filter_that_cannot_be_read_is_said_and_kept_for_correction(api: Api) -> None:
    study = made(api)
    text = shown(api, study, where="acuracy > 0.6")
    assert "The filter was not applied: trials of this study have no 'acuracy'; they have accuracy" in text
    assert 'value="acuracy > 0.6"' in text
    assert numbers(text) == list(range(7, -1, -1))
    text = shown(api, study, where="<b>x</b> = 1")
    assert "<b>x</b> = 1" in text
    raw = api.http.get(f"/studies/{study['id']}", params={"where": "<b>x</b> = 1"}).text
    assert "<b>x" not in raw


def test_every_column_of_the_history_sorts_both_ways(api: Api) -> None:
    study = made(api)
    trials = {t["number"]: t for t in trials_of(api, study)}
    for name in ("learning_rate", "alpha", "accuracy", "r1"):
        up = numbers(shown(api, study, sort=name, columns=f"number,{name}"))
        values = [trials[n]["metrics"].get(name, trials[n]["params"].get(name)) for n in up]
        assert values == sorted(values)
        down = numbers(shown(api, study, sort=f"-{name}"))
        values = [trials[n]["metrics"].get(name, trials[n]["params"].get(name)) for n in down]
        assert values == sorted(values, reverse=True)
    text = shown(api, study, sort="-accuracy")
    assert re.search(r'aria-sort="descending">\s*<a href="[^"]*sort=accuracy', text), "a second click turns it round"
    assert numbers(shown(api, study, sort="nonsense")) == list(range(7, -1, -1))


def test_columns_are_chosen_and_ordered_by_the_address(api: Api) -> None:
    study = made(api)
    text = shown(api, study, columns="accuracy, number,r2,nonsense")
    table = text[text.index('id="trials"') : text.index("</thead>")]
    heads = re.findall(r"<th[^>]*>\s*(?:<a [^>]*>)?([^<]+)", table)
    assert [h.strip() for h in heads] == ["accuracy", "#", "r2"]
    assert "Also: phase, state" in text


def test_groups_gather_seeds_and_keep_splits_apart(api: Api) -> None:
    compare = {"seeds": 3, "learning_rate": "shared", "predictors": ["guideline"], "baselines": []}
    study = made(api, compare=compare, search={"trials": 4, "sampler": "random", "start": [], "recheck": "none"})
    text = shown(api, study, group=1)
    rows = re.findall(r"<td>(validation|test)</td><td[^>]*>(\d+)</td><td[^>]*>([\d.]+)</td>\s*<td[^>]*>([^<]+)", text)
    splits = [split for split, *_ in rows]
    assert splits == sorted(splits, key=lambda s: s != "validation")
    assert [(n, spread) for split, n, _, spread in rows if split == "validation"] == [("1", "–")] * 4
    confirmed = [(n, mean) for split, n, mean, _ in rows if split == "test"]
    assert confirmed
    assert all(n == "3" for n, _ in confirmed)
    assert {mean for _, mean in confirmed} == {f"{0.9 + 0.001 * 2:.4f}"}
    link = re.search(r'href="([^"]*where=number[^"]*)#trials-title"', text)
    assert link
    assert numbers(unescape(api.http.get(link.group(1)).text))


def test_the_table_as_csv_has_the_filter_and_the_columns(api: Api) -> None:
    study = made(api)
    query = urlencode({"where": "number < 3", "columns": "number,accuracy,state", "sort": "-number"})
    answer = api.http.get(f"/studies/{study['id']}/trials.csv?{query}")
    rows = list(csv.reader(io.StringIO(answer.text)))
    assert rows[0] == ["id", "number", "accuracy", "state"]
    assert [r[1:] for r in rows[1:]] == [[str(n), str(0.5 + 0.02 * n), "completed"] for n in (2, 1, 0)]
    refused = api.http.get(f"/studies/{study['id']}/trials.csv", params={"where": "nope = 1"})
    assert refused.status_code == 422


def test_selected_trials_are_stopped_and_retried_together(api: Api) -> None:
    study = api.create(search={"trials": 4, "concurrency": 4, "start": []}, compare={"seeds": 0})
    leases = [api.lease(f"runner-{k}") for k in range(3)]
    ids = [lease["trial"]["id"] for lease in leases if lease is not None]
    login(api)
    answer = api.http.post(f"/studies/{study['id']}/trials/stop", data={"trial": ids[:2]})
    assert answer.status_code == 200
    stopping = [api.call("GET", f"/trials/{one}").json()["stop_reason"] for one in ids]
    assert [s is not None for s in stopping] == [True, True, False]
    answer = api.http.post(f"/studies/{study['id']}/trials/retry", data={"trial": ids})
    assert answer.status_code == 409
    assert answer.text.count("trial 0: ") == 1
    assert api.http.post(f"/studies/{study['id']}/trials/stop").status_code == 422
    other = api.create(name="other")
    assert api.http.post(f"/studies/{other['id']}/trials/stop", data={"trial": ids}).status_code == 404
    login(api, "viewer")
    assert api.http.post(f"/studies/{study['id']}/trials/stop", data={"trial": ids}).status_code == 403
    assert "Stop selected" not in api.http.get(f"/studies/{study['id']}").text


def test_a_click_on_a_point_leads_to_the_trial(api: Api) -> None:
    study = made(api)
    answer = api.http.get(f"/studies/{study['id']}/trials/3", follow_redirects=False)
    trial = next(t for t in trials_of(api, study) if t["number"] == 3)
    assert answer.headers["location"] == f"/trials/{trial['id']}"
    assert api.http.get(f"/studies/{study['id']}/trials/99").status_code == 404
    assert api.http.get(f"/studies/{study['id']}/trials/{10**20}").status_code == 422


def test_trials_are_compared_side_by_side_with_what_differs_first(api: Api) -> None:
    study = made(api)
    first, second = (t for t in trials_of(api, study) if t["number"] in (1, 6))
    text = unescape(api.http.get(f"/compare?trial={first['id']}&trial={second['id']}").text)
    rows = re.findall(r'<tr( class="differing")?><th scope="row">([^<]+)</th>(.*?)</tr>', text, re.DOTALL)
    assert "learning rate" in [name for _, name, _ in rows]
    parameters = rows[: len(first["params"])]
    assert [bool(d) for d, *_ in parameters] == sorted((bool(d) for d, *_ in parameters), reverse=True)
    accuracy = next(cells for _, name, cells in rows if name == "accuracy")
    assert re.findall(r">([\d.]+)<", accuracy) == ["0.52", "0.62"]
    figure = api.http.get(f"/compare/chart?trial={first['id']}&trial={second['id']}").json()
    assert [series["name"] for series in figure["data"]] == ["trial 1", "trial 6"]


def test_studies_are_compared_by_what_differs_in_their_files(api: Api) -> None:
    one, two = made(api, name="one"), made(api, name="two", budget={"configuration": {"r1": 1, "r2": 2, "r": 8}})
    text = unescape(api.http.get(f"/compare?study={one['id']}&study={two['id']}").text)
    names = re.findall(r'<th scope="row">([^<]+)</th>', text)
    assert "budget.configuration.r" in names
    assert "model.path" not in names
    for study in (one, two):
        assert f"{study['budget']['max_parameters']:,}" in text


@pytest.mark.parametrize("query", ["", "trial=1", "study=1"])
def test_a_comparison_of_less_than_two_says_what_to_do(api: Api, query: str) -> None:
    study = made(api)
    trial = trials_of(api, study)[0]
    query = query.replace("trial=1", f"trial={trial['id']}").replace("study=1", f"study={study['id']}")
    assert "Select 2 to 20 trials" in api.http.get(f"/compare?{query}").text


def test_a_comparison_of_too_many_says_how_many(api: Api) -> None:
    study = made(api, search={"trials": 21, "sampler": "random", "start": []})
    query = "&".join(f"trial={t['id']}" for t in trials_of(api, study))
    answer = api.http.get(f"/compare?{query}")
    assert (answer.status_code, "Select 2 to 20 trials" in answer.text) == (200, True)
    assert len(api.http.get(f"/compare/chart?{query}").json()["data"]) == 20


def test_the_predictors_own_trials_are_found_by_candidate(api: Api) -> None:
    study = made(api, search={"trials": 4, "sampler": "random", "start": ["guideline"]})
    assert numbers(shown(api, study, where="candidate = guideline")) == [0]


def test_other_teams_trials_and_studies_are_not_compared(api: Api) -> None:
    study = made(api)
    trial = trials_of(api, study)[0]
    api.http.post("/login", data={"token": api.token("member", "others")})
    for place in (
        f"/compare?trial={trial['id']}&trial={trial['id']}x",
        f"/compare?study={study['id']}&study={study['id']}x",
        f"/compare/chart?trial={trial['id']}",
        f"/studies/{study['id']}/trials/0",
        f"/studies/{study['id']}/trials.csv",
    ):
        assert api.http.get(place).status_code == 404, place


def test_the_address_keeps_what_was_asked() -> None:
    query = Query.of({"where": " r1 = 2 ", "sort": "-accuracy", "columns": "number,r1", "group": "1", "page": "3"})
    assert Query.of(dict(parse_qsl(query.address(3)))) == query
    assert "where=r1+%3D+2" in query.address()
    assert "columns=number%2Cr1" in query.address()
    assert "page" not in query.address()
