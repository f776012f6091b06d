"""The page that explores a budget before there is a study."""

from __future__ import annotations

import re
from html import unescape

import pytest
import yaml

from service.dashboard.new_study import begun_with
from tests.conftest import Api
from tests.service.helpers import login, post


def shown(api: Api, **query: str) -> str:
    answer = api.http.get("/explore/shown", params=query)
    assert answer.status_code == 200, answer.text
    return unescape(answer.text)


def test_it_shows_what_the_api_predicts(api: Api) -> None:
    login(api)
    text = shown(api, model="tiny-bert", rank="4")
    found = post(api, "/predictions", json={"model": {"path": "tiny-bert"}, "budget": {"lora_rank": 4}}).json()
    assert f"{found['budget']['max_parameters']:,} parameters" in text
    for ranking in found["predictions"]:
        best = ranking["best"][0]
        assert ranking["predictor"] in text
        assert best["reason"] in text
        assert f"{best['r1']}, {best['r2']}, {best['r']}" in text
    marks = re.findall(r'<span class="mark">(\w+)</span>', text)
    assert sorted(marks) == ["alignment", "guideline"]
    page = api.http.get("/explore", params={"model": "tiny-bert", "rank": "4"}).text
    assert f"{found['budget']['max_parameters']:,} parameters" in page


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"model": "nowhere/none", "rank": "4"}, "nowhere/none"),
        ({"model": "tiny-bert", "rank": "0"}, "greater than or equal to 1"),
        ({"model": "tiny-bert", "rank": "x"}, "integer"),
        ({"model": "tiny-bert", "kind": "poetry"}, "unknown task 'poetry'"),
        ({"model": "../../etc", "rank": "4"}, "model"),
        ({"model": ""}, "Name a model"),
    ],
)
def test_what_cannot_be_explored_is_said(api: Api, query: dict[str, str], words: str) -> None:
    login(api)
    assert words in shown(api, **query)


def test_viewers_explore_models_of_the_data_directories_only(api: Api) -> None:
    login(api, "viewer")
    text = shown(api, model="tiny-bert", rank="4")
    assert "What the budget admits" in text
    assert "Start a study" not in text
    assert "a viewer's token names models in the data directories" in shown(api, model="org/model", rank="4")


def test_a_study_is_begun_with_the_budget(api: Api) -> None:
    login(api)
    link = re.search(r'href="(/new\?[^"]+)"', shown(api, model="tiny-bert", rank="16", kind="causal_lm") or "")
    link = link or re.search(r'href="(/new\?[^"]+)"', shown(api, model="tiny-bert", rank="16"))
    assert link
    text = unescape(api.http.get(link.group(1)).text)
    assert 'model: {path: "tiny-bert"}' in text
    assert "budget: {lora_rank: 16}" in text


def test_names_with_quotes_stay_one_value() -> None:
    study = yaml.safe_load(begun_with('a", b: {c}\n', "causal_lm", "3"))
    assert study["model"] == {"path": 'a", b: {c}'}
    assert study["task"]["kind"] == "causal_lm"
    assert study["budget"] == {"lora_rank": 3}
    assert begun_with("", "poetry", "x") == begun_with("", "", "")


def test_it_asks_for_a_login(api: Api) -> None:
    assert api.http.get("/explore", follow_redirects=False).headers["location"] == "/login"
    assert api.http.get("/explore/shown").status_code == 401
