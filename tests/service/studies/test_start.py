"""The first trials of a search: predictors' choices and named configurations; values outside the search space."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.conftest import Api, make_study

RATES = {"low": 1e-4, "high": 1e-2, "log": True}


def first_trials(api: Api, study: dict[str, Any]) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = api.call("GET", f"/studies/{study['id']}/trials").json()["items"]
    return [t for t in items if t["phase"] == "search"]


def test_a_search_starts_with_each_predictors_choice_at_its_published_alpha(api: Api) -> None:
    study = api.create(search={"start": None, "trials": 6}, search_space={"learning_rate": RATES})
    tops = {r["predictor"]: r["best"][0] for r in study["predictions"]}
    trials = first_trials(api, study)
    structures = {(t["r1"], t["r2"], t["r"]) for t in tops.values()}
    assert {(t["params"]["r1"], t["params"]["r2"], t["params"]["r"]) for t in trials} == structures
    assert len(trials) == len(structures)  # equal choices run once
    assert trials[0]["candidate"] == "guideline"
    assert {t["params"]["alpha"] for t in trials} == {64}
    assert all(math.isclose(t["params"]["learning_rate"], 1e-3) for t in trials)
    assert {(t["state"], t["seed"]) for t in trials} == {("queued", 0)}
    done = api.run_all(lambda t: 0.5)
    assert [t["number"] for t in done] == list(range(6))
    assert [t["params"] for t in done[: len(trials)]] == [t["params"] for t in trials]


def test_named_configurations_fill_the_budget_and_count_as_trials(api: Api) -> None:
    start = [{"r1": 1, "r2": 1}, {"r1": 2, "r2": 4, "r": 2, "alpha": 16, "learning_rate": 3e-4}, {"r1": 1, "r2": 1}]
    study = api.create(search={"start": [*start, "guideline"], "trials": 3})
    named = first_trials(api, study)
    assert [t["candidate"] for t in named] == ["start", "start", "guideline"]
    assert named[1]["params"] == {"r1": 2, "r2": 4, "r": 2, "alpha": 16, "learning_rate": 3e-4}
    lora = named[0]
    assert (lora["params"]["r1"], lora["params"]["r2"]) == (1, 1)
    assert lora["parameters"] <= named[2]["parameters"] * 1.2
    assert len(api.run_all(lambda t: 0.5)) == 3


def test_a_search_with_fewer_trials_than_it_starts_with_runs_the_first(api: Api) -> None:
    study = api.create(search={"start": ["guideline", {"r1": 1, "r2": 1}], "trials": 1})
    assert [t["candidate"] for t in first_trials(api, study)] == ["guideline"]


def test_a_grid_starts_with_its_own_points(api: Api) -> None:
    assert first_trials(api, api.create(search={"start": None, "sampler": "grid"})) == []


def test_the_measured_predictors_choice_runs_once_it_is_known(api: Api) -> None:
    study = api.create(search={"start": None, "trials": 5}, compare={"predictors": ["guideline", "measured"]})
    before = first_trials(api, study)
    assert [t["candidate"] for t in before] == ["guideline"]
    lease = api.lease()
    assert lease is not None
    assert lease["trial"]["number"] == -1
    sizes = lease["trial"]["params"]["candidates"]
    taken = [before[0]["params"][name] for name in ("r1", "r2", "r")]
    other = next(s for s in sizes if s != taken)
    order = [other, *(s for s in sizes if s != other)]
    scores = [
        {**dict(zip(("r1", "r2", "r"), sizes, strict=True)), "score": 1.0 - k, "reason": "r"}
        for k, sizes in enumerate(order)
    ]
    assert api.finish(lease, value=None, predictions=scores).status_code == 200
    after = first_trials(api, study)
    assert [t["candidate"] for t in after] == ["guideline", "measured"]
    assert [after[1]["params"][name] for name in ("r1", "r2", "r")] == other
    assert [t["number"] for t in api.run_all(lambda t: 0.5)] == list(range(5))


@pytest.mark.parametrize(
    ("entry", "pointer", "words"),
    [
        ("alignment", "#/search/start/0", "compare.predictors does not name 'alignment'"),
        ("best", "#/search/start/0", "guideline"),
        ({"r1": 7, "r2": 1}, "#/search/start/0/r1", "7"),
        ({"r1": 2, "r2": 4, "r": 999}, "#/search/start/0/r", "r may be up to"),
        ({"r1": 2, "r2": 4, "gamma": 1}, "#/search/start/0/gamma", "unknown"),
        ({"r1": 2}, "#/search/start/0/r2", "required"),
        ({"r1": 2, "r2": 4, "alpha": -1}, "#/search/start/0/alpha", "greater than 0"),
        (3, "#/search/start/0", "guideline"),
    ],
)
def test_a_start_that_cannot_run_is_rejected_at_its_place(api: Api, entry: Any, pointer: str, words: str) -> None:
    body = make_study(search={"start": [entry]}, compare={"predictors": ["guideline"]})
    response = api.call("POST", "/studies", json=body)
    assert response.status_code == 422
    (fault,) = response.json()["errors"]
    assert fault["pointer"].startswith(pointer)
    assert words.lower() in fault["detail"].lower()


SPACES: dict[str, dict[str, Any]] = {
    "choices": {"alpha": {"choices": [8, 16]}},
    "one choice": {"alpha": {"choices": [8]}},
    "a value": {"alpha": 8},
    "a range": {"alpha": {"low": 8, "high": 16}},
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "grid"])
def test_a_configuration_outside_the_search_space_runs_and_the_sampler_ignores_it(
    api: Api, space: dict[str, Any], sampler: str
) -> None:
    study = api.create(search={"sampler": sampler, "trials": 4}, search_space=space)
    params = {"r1": 2, "r2": 4, "r": 4, "alpha": 64, "learning_rate": 0.001}
    assert api.call("POST", f"/studies/{study['id']}/trials", json={"params": params}).status_code == 201
    done = api.run_all(lambda t: 0.5)
    assert done[0]["params"] == params
    assert len(done) == 4
    assert all(t["params"]["alpha"] <= 16 for t in done[1:])
    exported = api.call("GET", f"/studies/{study['id']}/export", params={"format": "optuna"})
    assert exported.status_code == 200
