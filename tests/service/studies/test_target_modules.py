"""Target modules as a parameter of the search: each choice at one budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

import cdka
from service.db.studies import Studies
from service.studies.structures import admissions
from tests.conftest import Api, make_study
from tests.service.helpers import post, study_of, trials_of

CHOICES = {"attention": ["query", "key", "value"], "all": "all-linear", "output": r".*output\.dense"}


def searched(api: Api, choices: Any = CHOICES, **changes: Any) -> dict[str, Any]:
    space = {"target_modules": {"choices": choices}, **changes.pop("space", {})}
    budget = changes.pop("budget", {"min_fill": 0.5})
    response = post(api, "/studies", json=make_study(search_space=space, budget=budget, **changes))
    assert response.status_code == 201, response.text
    return dict(response.json())


def faults_of(api: Api, **changes: Any) -> dict[str, str]:
    response = post(api, "/studies", json=make_study(**changes))
    assert response.status_code == 422, response.text
    found: dict[str, str] = {}
    for fault in response.json()["errors"]:
        found[fault["pointer"]] = f"{found.get(fault['pointer'], '')} {fault['detail']}"
    return found


@pytest.mark.parametrize("sampler", ["auto", "tpe", "cmaes"])
def test_every_choice_is_tried_within_one_budget_on_its_own_layers(api: Api, sampler: str) -> None:
    study = searched(
        api,
        search={"sampler": sampler, "trials": 10},
        space={"method": {"choices": ["cdka", "lora"]}},
    )
    limit = study["budget"]["max_parameters"]
    seen: dict[str, set[int]] = {}
    for _ in range(10):
        lease = api.lease("runner")
        assert lease is not None
        trial = lease["trial"]
        name, layers = trial["params"]["target_modules"], trial["layers"]
        seen.setdefault(name, set()).add(len(layers))
        assert trial["study"]["adapter"]["target_modules"] == CHOICES[name]
        shapes = [cdka.ModuleShape(s["name"], s["d_in"], s["d_out"]) for s in layers]
        count = cdka.count_method_parameters(trial["method"], shapes, trial["params"])
        assert api.call("GET", f"/trials/{trial['id']}").json()["parameters"] == count
        assert limit / 2 <= count <= limit
        api.finish(lease)
    assert len(seen) >= 2
    assert all(len(sizes) == 1 for sizes in seen.values())


def test_the_budget_is_counted_on_the_choice_with_the_most_parameters(api: Api) -> None:
    """The order of a mapping says nothing: clients may sort it."""
    body = {"configuration": None, "lora_rank": 4, "min_fill": 0.2}
    counted = {searched(api, dict(order), budget=body)["budget"]["max_parameters"] for order in orders()}
    plain = post(api, "/studies", json=make_study(budget=body)).json()
    assert counted == {plain["budget"]["max_parameters"]}


def orders() -> list[list[tuple[str, Any]]]:
    found = list(CHOICES.items())
    return [found, found[::-1]]


def test_a_list_names_its_choices_by_what_they_select(api: Api) -> None:
    study = searched(api, ["all-linear", ["query", "value"]], search={"sampler": "random", "trials": 8})
    api.run_all(lambda t: 0.5)
    assert {t["params"]["target_modules"] for t in trials_of(api, study)} == {"all-linear", "query+value"}


def test_candidates_adapt_the_winners_modules(api: Api) -> None:
    study = searched(
        api,
        search={"sampler": "random", "trials": 12},
        compare={"seeds": 2, "learning_rate": "shared", "baselines": ["lora"], "predictors": ["guideline", "measured"]},
    )
    measured(api)
    api.run_all(lambda t: 0.9 if t["params"]["target_modules"] == "attention" else 0.3)
    found = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert found["state"] == "completed"
    rows = {c["name"]: c for c in found["candidates"]}
    assert {c["params"]["target_modules"] for c in rows.values()} == {"attention"}
    assert set(rows) == {"best", "guideline", "guideline_published", "measured", "lora"}
    assert all(c["parameters"] <= found["budget"] for c in rows.values())
    for predictor in found["predictors"]:
        params = rows[predictor["predictor"]]["params"]
        assert predictor["choice"]["r"] == params["r"]


def measured(api: Api) -> None:
    lease = api.lease("runner")
    assert lease is not None
    assert lease["trial"]["phase"] == "measurement"
    scores = [
        {"r1": a, "r2": b, "r": r, "score": 1 / (a + b + r), "reason": "measured"}
        for a, b, r in lease["trial"]["params"]["candidates"]
    ]
    assert api.finish(lease, value=None, predictions=scores).status_code == 200


def test_predictors_choices_start_the_search_where_the_budget_was_counted(api: Api) -> None:
    study = searched(api, search={"start": ["guideline"], "trials": 4}, compare={"predictors": ["guideline"]})
    (first,) = trials_of(api, study)
    assert first["params"]["target_modules"] == "all"
    assert first["candidate"] == "guideline"


def test_a_configuration_names_its_choice_or_takes_the_one_of_the_budget(api: Api) -> None:
    study = searched(api, search={"trials": 6})
    params = {"r1": 1, "r2": 2, "r": 2, "alpha": 8, "learning_rate": 0.001}
    taken = post(api, f"/studies/{study['id']}/trials", json={"params": {**params, "target_modules": "output"}})
    assert taken.status_code == 201, taken.text
    other = post(api, f"/studies/{study['id']}/trials", json={"params": params}).json()
    assert (taken.json()["params"]["target_modules"], other["params"]["target_modules"]) == ("output", "all")
    assert taken.json()["parameters"] < other["parameters"]
    wrong = post(api, f"/studies/{study['id']}/trials", json={"params": {**params, "target_modules": "mlp"}})
    (fault,) = wrong.json()["errors"]
    assert fault["pointer"] == "#/params/target_modules"
    assert "attention, all, output" in fault["detail"]
    large = {**params, "r": 12}
    assert post(api, f"/studies/{study['id']}/trials", json={"params": large}).status_code == 422
    on_few = post(api, f"/studies/{study['id']}/trials", json={"params": {**large, "target_modules": "output"}})
    assert on_few.status_code == 201, on_few.text


def test_a_warm_clone_needs_the_same_modules(api: Api) -> None:
    study = searched(api, search={"trials": 3, "sampler": "random"})
    lease = api.lease("runner")
    assert lease is not None
    api.finish(lease, artifact="file:///adapter")
    source = lease["trial"]
    other = next(name for name in CHOICES if name != source["params"]["target_modules"])
    body = {"from": source["id"], "warm": True, "params": {"target_modules": other}}
    faults = {f["pointer"] for f in post(api, f"/studies/{study['id']}/trials", json=body).json()["errors"]}
    assert "#/params/target_modules" in faults


def test_a_grid_holds_each_choice_with_the_pairs_that_it_admits(api: Api) -> None:
    study = searched(
        api,
        space={"r1": 1, "r2": {"choices": [1, 4]}, "alpha": 8, "learning_rate": 0.001},
        search={"sampler": "grid", "trials": 100},
    )
    api.run_all(lambda t: 0.5)
    done = trials_of(api, study, limit=100)
    configurations = {(t["params"]["target_modules"], t["params"]["r2"]) for t in done}
    assert len(done) == len(configurations)
    assert {name for name, _ in configurations} == set(CHOICES)
    assert study_of(api, study)["state"] == "completed"


def test_exports_show_the_choice(api: Api, tmp_path: Path) -> None:
    study = searched(api, search={"sampler": "random", "trials": 5})
    api.run_all(lambda t: 0.5)
    table = api.call("GET", f"/studies/{study['id']}/export", params={"format": "csv"}).text
    assert "params.target_modules" in table.splitlines()[0]
    file = tmp_path / "study.db"
    file.write_bytes(api.call("GET", f"/studies/{study['id']}/export", params={"format": "optuna"}).content)
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    loaded = optuna.load_study(study_name=study["id"], storage=storage).trials
    storage.engine.dispose()
    mine = sorted(trials_of(api, study), key=lambda t: t["number"])
    assert [t.params["target_modules"] for t in loaded] == [t["params"]["target_modules"] for t in mine]


@pytest.mark.parametrize(
    ("changes", "pointer", "words"),
    [
        ({"choices": {"a": ["quary"]}}, "#/search_space/target_modules/choices/a", "quary"),
        ({"choices": ["all-linear", ["quary"]]}, "#/search_space/target_modules/choices/1", "quary"),
        ({"choices": {"a": "(unclosed"}}, "#/search_space/target_modules/choices/a", "regular expression"),
        ({"choices": {}}, "#/search_space/target_modules/choices", "at least 1"),
        ({"choices": "all-linear"}, "#/search_space/target_modules/choices", "write a list"),
        ({"choices": {"a": []}}, "#/search_space/target_modules/choices/a", "at least 1"),
        (["all-linear"], "#/search_space/target_modules", "dictionary"),
    ],
)
def test_a_choice_that_is_none_is_refused_at_its_place(api: Api, changes: Any, pointer: str, words: str) -> None:
    faults = faults_of(api, search_space={"target_modules": changes})
    assert pointer in faults
    assert words in faults[pointer]


def test_modules_are_searched_or_fixed_but_not_both(api: Api) -> None:
    both = faults_of(
        api, adapter={"target_modules": ["query"]}, search_space={"target_modules": {"choices": ["all-linear"]}}
    )
    assert "name it in one of the two" in both["#/adapter/target_modules"]


def test_a_study_as_the_server_shows_it_can_be_posted_again(api: Api) -> None:
    spec = study_of(api, searched(api))["spec"]
    again = post(api, "/studies", json=spec)
    assert again.status_code == 201, again.text
    assert again.json()["spec"] == spec


@pytest.mark.parametrize("method", ["lora", "krona"])
def test_a_clone_on_other_modules_has_its_methods_sizes_there(api: Api, method: str) -> None:
    study = searched(api, search={"trials": 30, "sampler": "random"}, space={"method": {"choices": ["cdka", method]}})
    limit = study["budget"]["max_parameters"]
    source = None
    while source is None:
        lease = api.lease("runner")
        assert lease is not None
        api.finish(lease)
        params = lease["trial"]["params"]
        if lease["trial"]["method"] == method and params["target_modules"] == "attention":
            source = lease["trial"]
    for name in CHOICES:
        body = {"from": source["id"], "params": {"target_modules": name}}
        made = post(api, f"/studies/{study['id']}/trials", json=body)
        assert made.status_code == 201, made.text
        assert limit / 2 <= made.json()["parameters"] <= limit


def test_a_pair_that_one_choice_admits_is_not_hatched(api: Api) -> None:
    study = searched(api, {"all": "all-linear", "few": ["query"]}, budget={"min_fill": 0.85})
    with api.ctx.db.read() as session:
        stored = Studies(session).get(study["id"])
    hatched = {(one.r1, one.r2) for one in admissions(stored.plan, stored.spec.search_space) if one.reason}
    assert hatched.isdisjoint(stored.plan.pairs)
    assert len(stored.plan.pairs) > len(stored.plan.structures)
