"""A structure for each group of layers, under one budget."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import optuna
import pytest
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification

import cdka
from service.dashboard.study_view import config_text
from service.db.studies import Studies
from service.domain.plan import Plan
from service.domain.search_space import Pair
from service.search.grouped import Grouped, allocations
from tests.conftest import Api, make_study
from tests.service.helpers import login, post, study_of, trials_of

GROUPS = {"attention": ["query", "key", "value", r"attention.output.dense"], "mlp": r".*\.layer\.\d+\.\w+\.dense"}
POINT = {"alpha": 8, "learning_rate": 0.001}


def grouped(api: Api, groups: Any = GROUPS, **changes: Any) -> dict[str, Any]:
    response = post(api, "/studies", json=make_study(adapter={"groups": groups}, **changes))
    assert response.status_code == 201, response.text
    return dict(response.json())


def faults_of(api: Api, **changes: Any) -> dict[str, str]:
    response = post(api, "/studies", json=make_study(**changes))
    assert response.status_code == 422, response.text
    return {f["pointer"]: f["detail"] for f in response.json()["errors"]}


def shapes_of(layers: list[dict[str, Any]], group: str) -> list[cdka.ModuleShape]:
    return [cdka.ModuleShape(s["name"], s["d_in"], s["d_out"]) for s in layers if s["group"] == group]


def cost(layers: list[dict[str, Any]], params: dict[str, Any]) -> int:
    sizes = {g: [params[f"{g}.{n}"] for n in ("r1", "r2", "r")] for g in GROUPS}
    return sum(cdka.count_parameters(shapes_of(layers, g), *s) for g, s in sizes.items())


@pytest.mark.parametrize("sampler", ["auto", "tpe", "cmaes"])
def test_each_group_has_a_structure_and_all_share_the_budget(api: Api, sampler: str) -> None:
    study = grouped(api, search={"sampler": sampler, "trials": 10})
    limit = study["budget"]["max_parameters"]
    trials, shares = [], set()
    for k in range(10):
        lease = api.lease("runner")
        assert lease is not None
        trial = lease["trial"]
        assert {layer["group"] for layer in trial["layers"]} == set(GROUPS)
        names = {f"{g}.{n}" for g in GROUPS for n in ("r1", "r2", "r")}
        assert set(trial["params"]) == names | {"alpha", "learning_rate"}
        count = cost(trial["layers"], trial["params"])
        assert api.call("GET", f"/trials/{trial['id']}").json()["parameters"] == count
        assert 0.85 * limit <= count <= limit
        part = [trial["params"][f"attention.{n}"] for n in ("r1", "r2", "r")]
        shares.add(round(cdka.count_parameters(shapes_of(trial["layers"], "attention"), *part) / count, 1))
        trials.append(trial["params"])
        api.finish(lease, value=0.5 + k / 100)
    assert len(shares) > 2
    different = [p for p in trials if [p[f"attention.{n}"] for n in ("r1", "r2")] != [p["mlp.r1"], p["mlp.r2"]]]
    assert different


def test_the_guideline_is_compared_with_one_structure_in_all_groups(api: Api) -> None:
    study = grouped(
        api,
        search={"sampler": "random", "trials": 6, "start": ["guideline"]},
        compare={"seeds": 3, "learning_rate": "shared", "baselines": ["lora", "krona"], "predictors": ["guideline"]},
    )
    api.run_all(lambda t: 0.5 + 0.01 * (t["params"].get("mlp.r2", 0) != t["params"].get("attention.r2", 0)))
    found = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert found["state"] == "completed"
    rows = {c["name"]: c for c in found["candidates"]}
    guideline = rows["guideline"]["params"]
    assert [guideline[f"attention.{n}"] for n in ("r1", "r2", "r")] == [
        guideline[f"mlp.{n}"] for n in ("r1", "r2", "r")
    ]
    assert found["predictors"][0]["choice"]["r2"] == guideline["mlp.r2"]
    assert all(c["parameters"] <= found["budget"] and c["finished"] == 3 for c in rows.values() if "runs_as" not in c)
    first = min(trials_of(api, study, phase="search"), key=lambda t: t["number"])
    assert first["candidate"] == "guideline"
    assert {k: v for k, v in first["params"].items() if "." in k} == {k: v for k, v in guideline.items() if "." in k}
    login(api)
    page = api.http.get(f"/studies/{study['id']}").text
    assert f"attention {guideline['attention.r1']}, {guideline['attention.r2']}" in page
    assert "rank_pattern={" in page


def test_the_shown_configuration_makes_the_adapter_that_was_trained(api: Api, data_root: Path) -> None:
    study = grouped(api, search={"sampler": "random", "trials": 4})
    api.run_all(lambda t: 0.5 + t["params"]["mlp.r2"] / 100)
    with api.ctx.db.read() as session:
        stored = Studies(session).get(study["id"], None)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(data_root / "tiny-bert"))
    for trial in trials_of(api, study):
        names: dict[str, Any] = {}
        exec(config_text(stored, trial["method"], trial["params"]), names)
        adapted = get_peft_model(copy.deepcopy(model), names["config"])
        assert sum(p.numel() for n, p in adapted.named_parameters() if "cdka_" in n) == trial["parameters"]


def test_configurations_give_one_structure_or_one_for_each_group(api: Api) -> None:
    study = grouped(api, search={"trials": 8})
    place = f"/studies/{study['id']}/trials"
    alike = post(api, place, json={"params": {"r1": 1, "r2": 4, "r": 2, **POINT}})
    assert alike.status_code == 201, alike.text
    assert (alike.json()["params"]["mlp.r2"], alike.json()["params"]["attention.r2"]) == (4, 4)
    sizes = {"attention": {"r1": 1, "r2": 2, "r": 1}, "mlp": {"r1": 2, "r2": 4, "r": 1}}
    apart = post(api, place, json={"params": {"groups": sizes, **POINT}})
    assert apart.status_code == 201, apart.text
    assert apart.json()["params"]["mlp.r1"] == 2
    clone = post(
        api, place, json={"from": apart.json()["id"], "params": {"groups": {**sizes, "mlp": sizes["attention"]}}}
    )
    assert clone.status_code == 201, clone.text
    assert (clone.json()["params"]["mlp.r1"], clone.json()["params"]["alpha"]) == (1, 8)


@pytest.mark.parametrize(
    ("params", "pointer", "words"),
    [
        ({"groups": {"attention": {"r1": 1, "r2": 1, "r": 1}}}, "#/params/groups", "mlp"),
        (
            {"groups": {g: {"r1": 1, "r2": 1, "r": 1} for g in ("attention", "mlp", "head")}},
            "#/params/groups/head",
            "no",
        ),
        ({"groups": {g: {"r1": 1, "r2": 1, "r": 900} for g in GROUPS}}, "#/params/groups", "budget"),
        ({"groups": {g: {"r1": 7, "r2": 1, "r": 1} for g in GROUPS}}, "#/params/groups/mlp/r1", "7"),
        ({"groups": {g: {"r1": 1, "r2": 1, "r": 1} for g in GROUPS}, "r1": 2}, "#/params/groups", "leave r1"),
        ({"groups": {g: {"r1": 1, "r2": 1} for g in GROUPS}}, "#/params/groups/mlp/r", "required"),
    ],
)
def test_sizes_that_are_not_the_groups_are_refused(api: Api, params: Any, pointer: str, words: str) -> None:
    study = grouped(api)
    response = post(api, f"/studies/{study['id']}/trials", json={"params": {**params, **POINT}})
    assert response.status_code == 422
    faults = {f["pointer"]: f["detail"] for f in response.json()["errors"]}
    assert words in faults[pointer].lower()


def test_groups_in_a_study_without_them_are_refused(api: Api) -> None:
    study = api.create()
    body = {"params": {"groups": {"mlp": {"r1": 1, "r2": 1, "r": 1}}, **POINT}}
    (fault,) = post(api, f"/studies/{study['id']}/trials", json=body).json()["errors"]
    assert fault["pointer"] == "#/params/groups"
    assert "write r1, r2 and r" in fault["detail"]


@pytest.mark.parametrize(
    ("changes", "pointer", "words"),
    [
        ({"adapter": {"groups": {"a": ["query"]}}}, "#/adapter/groups", "at least 2"),
        ({"adapter": {"groups": {"a": ["query"], "b": ["query", "key"]}}}, "#/adapter/groups/b", "belong to a"),
        ({"adapter": {"groups": {"a": ["query"], "b": ["quary"]}}}, "#/adapter/groups/b", "quary"),
        ({"adapter": {"groups": {"a.b": ["query"], "c": ["key"]}}}, "#/adapter/groups/a.b", "pattern"),
        (
            {"adapter": {"groups": GROUPS, "target_modules": ["query"]}},
            "#/adapter/target_modules",
            "leave this out",
        ),
        (
            {"adapter": {"groups": GROUPS}, "search_space": {"target_modules": {"choices": ["all-linear"]}}},
            "#/search_space/target_modules",
            "leave this out",
        ),
        ({"adapter": {"groups": GROUPS}, "search_space": {"method": "lora"}}, "#/adapter/groups", "CDKA"),
        (
            {
                "adapter": {"groups": GROUPS},
                "budget": {"configuration": {"r1": 1, "r2": 1, "r": 1}, "min_fill": 0.99},
                "search_space": {"r1": 4, "r2": 1},
            },
            "#/search_space",
            "groups",
        ),
    ],
)
def test_groups_that_cannot_be_are_refused_at_their_place(api: Api, changes: Any, pointer: str, words: str) -> None:
    faults = faults_of(api, **changes)
    assert pointer in faults, faults
    assert words in faults[pointer]


def test_a_search_with_groups_starts_with_named_structures(api: Api) -> None:
    sizes = {"attention": {"r1": 1, "r2": 2, "r": 1}, "mlp": {"r1": 2, "r2": 4, "r": 1}}
    study = grouped(api, search={"start": [{"groups": sizes}, {"r1": 2, "r2": 4}], "trials": 4})
    first, second = sorted(trials_of(api, study), key=lambda t: t["number"])
    assert (first["params"]["mlp.r1"], second["params"]["mlp.r1"], second["params"]["attention.r1"]) == (2, 2, 2)
    api.run_all(lambda t: 0.5)
    assert study_of(api, study)["state"] == "completed"


def test_a_grid_tries_every_combination_once(api: Api) -> None:
    study = grouped(
        api,
        search_space={"r1": 2, "r2": {"choices": [4, 8]}, "alpha": 8, "learning_rate": 0.001},
        search={"sampler": "grid", "trials": 500},
    )
    api.run_all(lambda t: 0.5)
    done = trials_of(api, study, limit=200)
    assert len({str(sorted(t["params"].items())) for t in done}) == len(done) > 8
    assert len({(t["params"]["attention.r2"], t["params"]["mlp.r2"]) for t in done}) == 4


def test_exports_and_map_know_groups(api: Api, tmp_path: Any) -> None:
    study = grouped(api, search={"sampler": "random", "trials": 6})
    api.run_all(lambda t: 0.5)
    header = api.call("GET", f"/studies/{study['id']}/export", params={"format": "csv"}).text.splitlines()[0]
    assert {"params.attention.r1", "params.mlp.r"} <= set(header.split(","))
    file = tmp_path / "study.db"
    file.write_bytes(api.call("GET", f"/studies/{study['id']}/export", params={"format": "optuna"}).content)
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    loaded = optuna.load_study(study_name=study["id"], storage=storage).trials
    storage.engine.dispose()
    assert all({"attention.r1", "mlp.r2"} <= set(t.params) for t in loaded)
    assert api.call("GET", f"/studies/{study['id']}/report", params={"format": "html"}).status_code == 200


def made(limit: int, units: dict[str, list[int]], min_fill: float = 0.85) -> Grouped:
    groups = {
        name: tuple(
            Pair(r1=1, r2=2**k, r_low=1, r_high=limit // unit, unit_parameters=unit) for k, unit in enumerate(mine)
        )
        for name, mine in units.items()
    }
    plan = Plan(shapes=(), max_parameters=limit, min_fill=min_fill, base_parameters=1, structures=(), groups=groups)
    return Grouped(plan, None)


def test_what_uses_up_a_budget_is_all_that_does() -> None:
    """Against every pair of numbers."""
    for units in itertools.product(range(1, 8), repeat=2):
        limit, least = 20, 17
        whole = [
            (a, b)
            for a in range(1, 21)
            for b in range(1, 21)
            if least <= (total := a * units[0] + b * units[1]) <= limit and limit - total < min(units)
        ]
        assert list(allocations(units, limit, least, 1, None)) == whole


@pytest.mark.parametrize("units", [{"a": [5, 9, 30], "b": [4, 60]}, {"a": [3, 7], "b": [5, 6], "c": [8, 50]}])
def test_every_point_is_a_configuration_and_back(units: dict[str, list[int]]) -> None:
    space = made(100, units)
    names = list(space.distributions)
    for k in range(200):
        drawn = optuna.samplers.RandomSampler(seed=k)
        study = optuna.create_study(sampler=drawn)
        point = study.ask(fixed_distributions=space.distributions).params
        params = space.params(point)
        assert 85 <= space.parameters(params) <= 100
        back = space.point(params)
        assert back is not None
        assert list(back) == names
        assert space.params(back) == params


def test_a_combination_over_the_budget_becomes_the_nearest_within() -> None:
    space = made(100, {"a": [5, 95], "b": [4, 90]})
    params = space.params({"structure.a": 1, "structure.b": 1, "share.a": 0.5})
    assert (params["a.r2"], params["b.r2"]) in {(1, 2), (2, 1)}
    assert space.parameters(params) <= 100


def test_a_small_group_does_not_make_the_memory_of_all_layers_large(api: Api) -> None:
    """Only one group at a time can have the whole budget."""
    groups = {"pooler": ["pooler.dense"], "rest": ["query", "key", "value", "attention.output.dense"]}
    plain = post(api, "/studies", json=make_study(budget={"min_fill": 0})).json()
    apart = grouped(api, groups, budget={"min_fill": 0})
    assert apart["memory"]["activations"] < 3 * plain["memory"]["activations"]


def test_a_budget_that_no_counts_can_fill_is_refused_at_once() -> None:
    units = (3, 4, 5, 6)
    assert allocations(units, 1_000_000, 900_000, 1, 24) == ()
    space = made(1_000_000, {name: [3, 4, 5] for name in "abcd"})
    space._high = 24
    assert space.is_empty()


def test_a_trial_is_found_by_the_pair_of_any_group(api: Api) -> None:
    study = grouped(api, search={"trials": 4, "sampler": "random"})
    api.run_all(lambda t: 0.5)
    params = trials_of(api, study)[0]["params"]
    login(api)
    query = {"r1": params["mlp.r1"], "r2": params["mlp.r2"]}
    assert "No trial fits" not in api.http.get(f"/studies/{study['id']}", params=query).text
    assert "No trial fits" in api.http.get(f"/studies/{study['id']}", params={"r1": 63, "r2": 63}).text


def test_predictors_rank_each_group_within_its_share_of_the_budget(api: Api) -> None:
    study = grouped(api)
    limit = study["budget"]["max_parameters"]
    units = {g: cdka.count_lora_parameters(shapes_of(study["layers"], g), 1) for g in GROUPS}
    again = api.call("GET", f"/studies/{study['id']}/predictions").json()
    assert again == study["predictions"]
    for ranking in again:
        assert set(ranking["groups"]) == set(GROUPS)
        for group, best in ranking["groups"].items():
            share = limit * units[group] // sum(units.values())
            mine = shapes_of(study["layers"], group)
            sizes = [(p["r1"], p["r2"], p["r"]) for p in best]
            assert [p["parameters"] for p in best] == [cdka.count_parameters(mine, *s) for s in sizes]
            assert all(p["parameters"] <= share for p in best)
            candidates = cdka.feasible(mine, share)
            expected = cdka.predict(mine, share, ranking["predictor"], candidates=candidates)[0]
            assert sizes[0] == expected.configuration.structure
        assert sum(best[0]["parameters"] for best in ranking["groups"].values()) <= limit
    login(api)
    page = api.http.get(f"/studies/{study['id']}").text
    assert "guideline, attention alone" in page
    assert "guideline, mlp alone" in page


def test_predictions_without_a_study_rank_groups_too(api: Api) -> None:
    body = {"model": {"path": "tiny-bert"}, "budget": {"lora_rank": 4}, "adapter": {"groups": GROUPS}}
    found = post(api, "/predictions", json=body).json()["predictions"]
    assert {r["predictor"]: set(r["groups"]) for r in found} == {n: set(GROUPS) for n in ("guideline", "alignment")}
    plain = post(api, "/predictions", json={**body, "adapter": {}}).json()["predictions"]
    assert [r["groups"] for r in plain] == [{}, {}]
