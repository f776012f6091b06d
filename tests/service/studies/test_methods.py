"""The method as a parameter of the search: each at the study's budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from transformers import GPT2Config

import cdka
from tests.conftest import Api, make_study
from tests.service.helpers import login, trials_of

METHODS = ["cdka", "lora", "rslora", "dora", "lokr", "krona", "miss"]


def searched(api: Api, methods: Any, **changes: Any) -> dict[str, Any]:
    space = {"method": methods, **changes.pop("space", {})}
    response = api.call("POST", "/studies", json=make_study(search_space=space, **changes))
    assert response.status_code == 201, response.text
    return dict(response.json())


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "nsga2", "qmc"])
def test_trials_have_the_sizes_and_parameters_of_their_method(api: Api, sampler: str) -> None:
    study = searched(
        api,
        {"choices": METHODS},
        search={"sampler": sampler, "trials": 24},
        space={"scaling": {"choices": ["cdka", "rslora"]}, "dropout": {"low": 0, "high": 0.2}},
    )
    api.run_all(lambda t: 0.5)
    done = trials_of(api, study)
    assert len({t["method"] for t in done}) >= 3
    shapes = [cdka.ModuleShape(s["name"], s["d_in"], s["d_out"]) for s in layers_of(api)]
    budget = cdka.count_parameters(shapes, 2, 4, 4)
    for trial in done:
        method, params = trial["method"], trial["params"]
        assert params["method"] == method
        assert trial["parameters"] == cdka.count_method_parameters(method, shapes, params) <= budget
        sizes = {"cdka": {"r1", "r2", "r"}, "krona": {"r1", "r2", "r"}, "lokr": {"r", "factor"}}.get(method, {"r"})
        own = set() if method == "miss" else {"alpha"}
        own |= {"scaling"} if method in ("cdka", "krona") else set()
        assert set(params) == sizes | own | {"method", "learning_rate", "dropout"}


def layers_of(api: Api) -> list[dict[str, Any]]:
    """The layers of the last study's model, as a runner sees them."""
    api.create(name="layers")
    lease = api.lease("other")
    assert lease is not None
    return list(lease["trial"]["layers"])


def test_the_best_of_each_method_is_confirmed(api: Api) -> None:
    study = searched(
        api,
        {"choices": ["cdka", "lora", "miss"]},
        search={"sampler": "random", "trials": 12},
        compare={"seeds": 3, "tuning_trials": 2, "baselines": ["lora", "dora"], "predictors": ["guideline"]},
    )
    worth = {"cdka": 0.5, "lora": 0.7, "miss": 0.6, "dora": 0.4}
    api.run_all(lambda t: worth[t["method"]] + t["params"]["learning_rate"])
    found = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert found["state"] == "completed"
    rows = {c["name"]: c for c in found["candidates"]}
    assert set(rows) == {"best", "best_cdka", "best_miss", "guideline", "guideline_published", "lora", "dora"}
    assert rows["best"]["method"] == "lora"
    assert "LoRA rank" in rows["best"]["title"]
    assert rows["best_cdka"]["method"] == "cdka"
    assert rows["best_miss"]["title"].startswith("best MiSS found (trial ")
    assert "alpha" not in rows["best_miss"]["params"]
    assert rows["guideline"]["method"] == "cdka"
    assert rows["guideline_published"]["params"]["alpha"] == 64
    assert all(c["finished"] == 3 for c in rows.values() if "identical" not in " ".join(c["flags"]))
    (guideline,) = found["predictors"]
    assert guideline["compared_trials"] == sum(t["method"] == "cdka" for t in trials_of(api, study, phase="search"))


def test_a_search_without_cdka_never_proposes_it(api: Api) -> None:
    study = searched(
        api,
        "lora",
        search={"trials": 3, "start": None},
        compare={"predictors": ["guideline"]},
        space={"r1": 7, "r2": 11},
    )
    assert trials_of(api, study) == []
    api.run_all(lambda t: 0.5)
    assert {t["method"] for t in trials_of(api, study)} == {"lora"}
    body = make_study(search_space={"method": "lora"}, search={"start": [{"r1": 2, "r2": 4}]})
    (fault,) = api.call("POST", "/studies", json=body).json()["errors"]
    assert fault["pointer"] == "#/search/start/0"


def test_a_range_that_no_method_has_makes_nothing_endless(api: Api) -> None:
    """MiSS has no alpha, so there is one configuration, and it runs once."""
    study = searched(api, "miss", space={"alpha": {"low": 8, "high": 64}, "learning_rate": 0.001}, search={"trials": 6})
    api.run_all(lambda t: 0.5)
    assert len(trials_of(api, study)) == 1


def test_exports_tell_methods_apart(api: Api, tmp_path: Path) -> None:
    study = searched(api, {"choices": ["lora", "lokr"]}, search={"sampler": "qmc", "trials": 6})
    api.run_all(lambda t: 0.5)
    file = tmp_path / "study.db"
    file.write_bytes(api.call("GET", f"/studies/{study['id']}/export", params={"format": "optuna"}).content)
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    loaded = optuna.load_study(study_name=study["id"], storage=storage).trials
    storage.engine.dispose()
    mine = sorted(trials_of(api, study), key=lambda t: t["number"])
    assert [t.params["method"] for t in loaded] == [t["method"] for t in mine]
    assert {t.params.get("factor") is None for t in loaded if t.params["method"] == "lora"} == {True}


def test_methods_for_linear_layers_are_refused_on_others(api: Api, data_root: Path) -> None:
    config = GPT2Config(
        n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=64, architectures=["GPT2LMHeadModel"]
    )
    config.save_pretrained(data_root / "methods-gpt2")
    body = make_study(
        model={"path": "methods-gpt2"},
        search_space={"method": {"choices": ["cdka", "miss"]}},
        compare={"seeds": 1, "learning_rate": "shared", "baselines": ["lora", "lokr"]},
    )
    faults = {f["pointer"]: f["detail"] for f in api.call("POST", "/studies", json=body).json()["errors"]}
    assert set(faults) == {"#/search_space/method/choices/1", "#/compare/baselines/1"}
    assert "c_attn" in faults["#/compare/baselines/1"]


def test_predictors_choices_are_trials_of_a_search_over_methods(api: Api) -> None:
    study = searched(
        api,
        {"choices": ["cdka", "lora"]},
        search={"trials": 6, "start": ["guideline"]},
        compare={"predictors": ["guideline"]},
    )
    first = min(trials_of(api, study), key=lambda t: t["number"])
    assert (first["method"], first["params"]["method"], first["candidate"]) == ("cdka", "cdka", "guideline")
    api.run_all(lambda t: 0.5)


def test_a_grid_tries_each_other_method_once_for_each_setting(api: Api) -> None:
    study = searched(
        api,
        {"choices": ["cdka", "lora", "miss"]},
        space={"r1": 2, "r2": {"choices": [2, 4]}, "alpha": {"choices": [8, 16]}, "learning_rate": 0.001},
        search={"sampler": "grid", "trials": 100},
        budget={"min_fill": 0},
    )
    api.run_all(lambda t: 0.5)
    done = trials_of(api, study)
    by_method = {m: [t for t in done if t["method"] == m] for m in ("cdka", "lora", "miss")}
    assert {m: len(found) for m, found in by_method.items()} == {"cdka": 4, "lora": 2, "miss": 1}


def test_all_further_baselines_are_confirmed_at_the_budget(api: Api) -> None:
    baselines = ["lora", "rslora", "dora", "miss", "lokr", "krona"]
    study = api.create(
        search={"trials": 2}, compare={"seeds": 2, "learning_rate": "shared", "baselines": baselines, "predictors": []}
    )
    api.run_all(lambda t: 0.5)
    found = api.call("GET", f"/studies/{study['id']}/comparison").json()
    rows = {c["name"]: c for c in found["candidates"]}
    assert list(rows) == ["best", *baselines]
    assert all(c["parameters"] <= found["budget"] and c["finished"] == 2 for c in rows.values())


@pytest.mark.parametrize(
    ("methods", "pointer", "words"),
    [
        ({"choices": ["cdka", "adalora"]}, "#/search_space/method/choices/1", "'lora'"),
        ({"choices": []}, "#/search_space/method/choices", "at least 1"),
        ("adapter", "#/search_space/method", "'cdka'"),
        (7, "#/search_space/method", "'cdka'"),
    ],
)
def test_what_is_no_method_is_refused(api: Api, methods: Any, pointer: str, words: str) -> None:
    response = api.call("POST", "/studies", json=make_study(search_space={"method": methods}))
    assert response.status_code == 422
    (fault,) = response.json()["errors"]
    assert fault["pointer"] == pointer
    assert words in fault["detail"]


def test_a_method_that_the_budget_does_not_admit_is_refused_with_its_cost(api: Api) -> None:
    body = make_study(search_space={"method": {"choices": ["cdka", "dora"]}}, budget={"min_fill": 0})
    body["budget"] = {"configuration": {"r1": 1, "r2": 2, "r": 1}, "min_fill": 0}
    response = api.call("POST", "/studies", json=body)
    assert response.status_code == 422
    (fault,) = response.json()["errors"]
    assert fault["pointer"] == "#/search_space/method/choices/1"
    assert "dora needs at least" in fault["detail"]


def test_full_fine_tuning_is_compared_where_it_is_asked_for_at_rates_of_its_own(api: Api) -> None:
    compare = {"seeds": 2, "tuning_trials": 2, "baselines": ["lora", "full"], "predictors": []}
    study = api.create(search={"trials": 2}, compare=compare)
    api.run_all(lambda t: 0.5)
    rows = {c["name"]: c for c in api.call("GET", f"/studies/{study['id']}/comparison").json()["candidates"]}
    full = rows["full"]
    assert full["title"] == "full fine-tuning of the adapted layers"
    assert full["parameters"] == sum(s["d_in"] * s["d_out"] for s in layers_of(api))
    assert any("over the budget" in flag for flag in full["flags"])
    assert set(full["params"]) == {"learning_rate"}
    tuned = trials_of(api, study, phase="tuning", limit=100)
    rates = {m: sorted(t["params"]["learning_rate"] for t in tuned if t["candidate"] == m) for m in ("lora", "full")}
    assert rates["full"] == pytest.approx([rate / 10 for rate in rates["lora"]])


def test_full_fine_tuning_is_a_method_of_the_search(api: Api, tmp_path: Path) -> None:
    study = searched(
        api,
        {"choices": ["cdka", "full"]},
        search={"sampler": "random", "trials": 8},
        space={"dropout": {"low": 0, "high": 0.2}},
        compare={"seeds": 2, "learning_rate": "shared", "baselines": ["lora"], "predictors": ["guideline"]},
    )
    api.run_all(lambda t: 0.5 + 0.1 * (t["method"] == "full"))
    done = trials_of(api, study, phase="search", limit=100)
    assert {t["method"] for t in done} == {"cdka", "full"}
    assert all(set(t["params"]) == {"method", "learning_rate"} for t in done if t["method"] == "full")
    found = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert found["candidates"][0]["method"] == "full"
    assert found["candidates"][0]["title"].endswith("full fine-tuning of the adapted layers)")
    assert api.call("GET", f"/studies/{study['id']}/report", params={"format": "html"}).status_code == 200
    assert api.call("GET", f"/studies/{study['id']}/export", params={"format": "optuna"}).status_code == 200
    login(api)
    assert "Train these layers of the model itself" in api.http.get(f"/studies/{study['id']}").text


def test_full_fine_tuning_of_a_quantised_base_is_refused(api: Api) -> None:
    body = make_study(
        training={"quantization": "4bit", "precision": "bf16"},
        resources={"gpus": 1},
        compare={"seeds": 1, "learning_rate": "shared", "baselines": ["full"]},
    )
    faults = {f["pointer"]: f["detail"] for f in api.call("POST", "/studies", json=body).json()["errors"]}
    assert "cannot be trained" in faults["#/compare/baselines/0"]


def test_the_memory_of_full_fine_tuning_is_counted(api: Api) -> None:
    with_full = api.create(compare={"seeds": 1, "learning_rate": "shared", "baselines": ["full"]})
    layers = sum(s["d_in"] * s["d_out"] for s in layers_of(api))
    assert with_full["memory"]["training"] >= 16 * layers
