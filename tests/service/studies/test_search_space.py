"""Parameters of the adapter and the training in the search space, from the study to the runner and the exports."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.conftest import Api, make_study
from tests.service.helpers import trials_of

SPACE: dict[str, Any] = {
    "dropout": {"low": 0, "high": 0.3, "step": 0.1},
    "weight_decay": {"low": 1e-4, "high": 0.1, "log": True},
    "warmup_ratio": {"low": 0, "high": 0.2},
    "lora_plus_ratio": {"choices": [1, 4, 16]},
    "max_grad_norm": 0.5,
    "batch_size": {"choices": [4, 8, 8]},
    "schedule": {"choices": ["linear", "cosine"]},
    "optimizer": {"choices": ["adamw"]},
    "init_weights": {"choices": ["kaiming", "orthogonal"]},
    "scaling": {"choices": ["cdka", "rslora"]},
}
# As make_study has it, without what is searched.
TRAINING: dict[str, Any] = {"epochs": 3, "max_length": 16}


def searched(**changes: Any) -> dict[str, Any]:
    body = make_study(search_space=SPACE, **changes)
    body["training"] = TRAINING
    return body


def created(api: Api, body: dict[str, Any]) -> dict[str, Any]:
    response = api.call("POST", "/studies", json=body)
    assert response.status_code == 201, response.text
    return dict(response.json())


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "nsga2", "qmc"])
def test_every_sampler_proposes_values_within_the_space(api: Api, sampler: str) -> None:
    created(api, searched(search={"sampler": sampler, "trials": 9}))
    leases = []

    def train(trial: dict[str, Any]) -> float:
        leases.append(trial)
        return float(1 - trial["params"]["dropout"])

    done = api.run_all(train)
    assert len(done) == 9
    for trial in done:
        params = trial["params"]
        assert set(params) == {"r1", "r2", "r", "alpha", "learning_rate", *SPACE}
        assert min(abs(params["dropout"] - k / 10) for k in range(4)) < 1e-9
        assert 1e-4 <= params["weight_decay"] <= 0.1
        assert 0 <= params["warmup_ratio"] <= 0.2
        assert params["lora_plus_ratio"] in (1, 4, 16)
        assert params["max_grad_norm"] == 0.5
        assert (params["batch_size"], type(params["batch_size"])) in ((4, int), (8, int))
        assert params["schedule"] in ("linear", "cosine")
        assert params["optimizer"] == "adamw"
        assert params["init_weights"] in ("kaiming", "orthogonal")
        assert params["scaling"] in ("cdka", "rslora")
    for trial in leases:
        assert_trained_as_sampled(trial)


def assert_trained_as_sampled(trial: dict[str, Any]) -> None:
    """A runner reads all of a trial's training in its study."""
    params, study = trial["params"], trial["study"]
    for name in ("weight_decay", "warmup_ratio", "lora_plus_ratio", "max_grad_norm", "batch_size", "schedule"):
        assert study["training"][name] == params[name]
    for name in ("dropout", "init_weights", "scaling"):
        assert name not in params or study["adapter"][name] == params[name]


def test_confirmation_trains_all_candidates_with_the_winners_values(api: Api) -> None:
    study = created(
        api,
        searched(
            search={"trials": 4},
            compare={"seeds": 3, "baselines": ["lora", "krona"], "predictors": ["guideline"], "tuning_trials": 2},
        ),
    )
    leases = []

    def train(trial: dict[str, Any]) -> float:
        leases.append(trial)
        return 0.5 + trial["number"] / 1000

    api.run_all(train)
    found = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert found["state"] == "completed"
    first = found["candidates"][0]["params"]
    for candidate in found["candidates"]:
        params = candidate["params"]
        own = {"init_weights", "scaling"} if candidate["name"] in ("guideline_published", "lora") else set()
        assert {n: params[n] for n in SPACE if n not in own} == {n: first[n] for n in SPACE if n not in own}
        assert candidate["name"] != "lora" or not own & set(params), "LoRA has neither"
    published = next(c for c in found["candidates"] if c["name"] == "guideline_published")["params"]
    assert (published["init_weights"], published["scaling"], published["alpha"]) == ("kaiming", "cdka", 64)
    (note,) = [n for n in found["notes"] if "may favour it" in n]
    assert f"batch_size {first['batch_size']}" in note
    for trial in leases:
        assert_trained_as_sampled(trial)


def test_first_trials_have_the_usual_values_where_the_space_holds_them(api: Api) -> None:
    study = created(
        api,
        searched(
            search={"trials": 5, "start": ["guideline", {"r1": 2, "r2": 4, "dropout": 0.2, "schedule": "cosine"}]},
            compare={"predictors": ["guideline"]},
        ),
    )
    usual, own = [t["params"] for t in sorted(trials_of(api, study), key=lambda t: t["number"])]
    assert (usual["dropout"], usual["lora_plus_ratio"], usual["schedule"], usual["batch_size"]) == (0, 1, "linear", 4)
    assert usual["weight_decay"] == pytest.approx((1e-4 * 0.1) ** 0.5), "0 is outside, so the middle in the logarithm"
    assert (own["dropout"], own["schedule"], own["init_weights"]) == (0.2, "cosine", "kaiming")


def test_a_named_configuration_may_set_what_is_searched_and_nothing_else(api: Api) -> None:
    params = {"r1": 2, "r2": 4, "r": 4, "alpha": 16, "learning_rate": 0.001, "batch_size": 4, "scaling": "rslora"}
    study = created(api, searched(search={"trials": 3}))
    made = api.call("POST", f"/studies/{study['id']}/trials", json={"params": params})
    assert made.status_code == 201
    assert made.json()["params"].items() >= params.items()
    assert set(made.json()["params"]) == {"r1", "r2", "r", "alpha", "learning_rate", *SPACE}
    for change, pointer, words in (
        ({"epochs": 5}, "#/params/epochs", "training.epochs is 3 in every trial"),
        ({"dropout": 1.5}, "#/params/dropout", "less than 1"),
        ({"schedule": "sawtooth"}, "#/params/schedule", "linear"),
        ({"batch_size": 4.5}, "#/params/batch_size", "integer"),
    ):
        response = api.call("POST", f"/studies/{study['id']}/trials", json={"params": {**params, **change}})
        assert response.status_code == 422
        (fault,) = response.json()["errors"]
        assert fault["pointer"] == pointer
        assert words in fault["detail"]


def test_a_study_that_searches_none_of_them_is_as_before(api: Api) -> None:
    api.create(search={"trials": 2})
    for trial in api.run_all(lambda t: 0.5):
        assert set(trial["params"]) == {"r1", "r2", "r", "alpha", "learning_rate"}


@pytest.mark.parametrize(
    ("space", "pointer", "words"),
    [
        ({"dropout": {"low": 0, "high": 0.35, "step": 0.1}}, "/dropout", "write one of them as high"),
        ({"dropout": {"low": 0, "high": 0.3, "log": True}}, "/dropout", "log needs a low above 0"),
        ({"weight_decay": {"low": 0.1, "high": 0.1}}, "/weight_decay", "write a single value as a number"),
        ({"weight_decay": {"low": 0, "high": 2}}, "/weight_decay/high", "less than or equal to 1"),
        ({"warmup_ratio": 1}, "/warmup_ratio", "less than 1"),
        ({"lora_plus_ratio": {"choices": [1, 0.5]}}, "/lora_plus_ratio/choices/1", "greater than or equal to 1"),
        ({"max_grad_norm": 0}, "/max_grad_norm", "greater than 0"),
        ({"alpha": {"choices": [0, 8]}}, "/alpha/choices/0", "greater than 0"),
        ({"learning_rate": {"low": 0, "high": 0.1}}, "/learning_rate/low", "greater than 0"),
        ({"batch_size": {"low": 8, "high": 64, "log": True, "step": 8}}, "/batch_size", "exclude each other"),
        ({"batch_size": {"choices": [8, 0]}}, "/batch_size/choices/1", "greater than or equal to 1"),
        ({"batch_size": {"choices": []}}, "/batch_size/choices", "at least 1"),
        ({"batch_size": 8.5}, "/batch_size", "integer"),
        ({"schedule": {"choices": ["cosine", "sine"]}}, "/schedule/choices/1", "'linear', 'cosine' or 'constant'"),
        ({"optimizer": "adam"}, "/optimizer", "adamw_fused"),
        ({"init_weights": {"choices": ["weight"]}}, "/init_weights/choices/0", "kaiming"),
        ({"scaling": {"choices": []}}, "/scaling/choices", "at least 1"),
        ({"optimizer": {"choices": ["sgd"]}, "lora_plus_ratio": 4}, "/lora_plus_ratio", "not sgd"),
        ({"dropout": {"low": 0, "high": 0.5, "step": 1e-9}}, "/dropout", "make it larger"),
    ],
)
def test_what_cannot_be_searched_is_refused_at_its_place(
    api: Api, space: dict[str, Any], pointer: str, words: str
) -> None:
    body = make_study(search_space=space)
    body["training"] = TRAINING
    response = api.call("POST", "/studies", json=body)
    assert response.status_code == 422
    (fault,) = response.json()["errors"]
    assert fault["pointer"] == f"#/search_space{pointer}"
    assert words.lower() in fault["detail"].lower()


def test_what_is_searched_is_not_fixed_as_well(api: Api) -> None:
    body = make_study(search_space={"batch_size": {"choices": [4, 8]}, "dropout": 0.1}, adapter={"dropout": 0.1})
    body["training"] = {"batch_size": 4, "epochs": 2, "max_length": 16}
    faults = {f["pointer"]: f["detail"] for f in api.call("POST", "/studies", json=body).json()["errors"]}
    assert set(faults) == {"#/training/batch_size", "#/adapter/dropout"}
    assert "one of the two" in faults["#/training/batch_size"]


def test_a_study_that_was_read_can_be_posted_again(api: Api) -> None:
    study = created(api, searched())
    again = created(api, study["spec"])
    assert again["spec"] == study["spec"]


def test_epochs_are_searched_without_a_pruner_only(api: Api) -> None:
    body = make_study(search_space={"epochs": {"low": 1, "high": 3}}, search={"pruner": "asha", "trials": 4})
    body["training"] = {"max_length": 16}
    (fault,) = api.call("POST", "/studies", json=body).json()["errors"]
    assert fault["pointer"] == "#/search_space/epochs"
    body["search"]["pruner"] = "none"
    created(api, body)
    assert {t["params"]["epochs"] for t in api.run_all(lambda t: 0.5)} <= {1, 2, 3}


def test_a_grid_enumerates_choices_and_steps(api: Api) -> None:
    space = {
        "r1": 2,
        "r2": 4,
        "r": 4,
        "alpha": 16,
        "learning_rate": 0.001,
        "dropout": {"low": 0, "high": 0.2, "step": 0.1},
        "schedule": {"choices": ["linear", "cosine"]},
        "batch_size": {"low": 4, "high": 8, "step": 4},
    }
    body = make_study(search_space=space, search={"sampler": "grid", "trials": 50}, budget={"min_fill": 0})
    body["training"] = TRAINING
    created(api, body)
    done = api.run_all(lambda t: 0.5)
    keys = {(round(t["params"]["dropout"], 9), t["params"]["schedule"], t["params"]["batch_size"]) for t in done}
    assert len(done) == len(keys) == 3 * 2 * 2


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "nsga2", "qmc"])
def test_whole_numbers_are_searched_in_steps_and_in_their_logarithm(api: Api, sampler: str) -> None:
    body = make_study(
        search_space={"batch_size": {"low": 2, "high": 16, "log": True}, "epochs": {"low": 1, "high": 9, "step": 4}},
        search={"sampler": sampler, "trials": 12},
    )
    body["training"] = {"max_length": 16}
    created(api, body)
    done = [t["params"] for t in api.run_all(lambda t: 0.5)]
    assert {p["epochs"] for p in done} <= {1, 5, 9}
    assert all(type(p["batch_size"]) is int and 2 <= p["batch_size"] <= 16 for p in done)
    assert sum(p["batch_size"] < 6 for p in done) >= 2, "half of the logarithm lies below 6"


def test_exports_hold_every_parameter(api: Api, tmp_path: Path) -> None:
    study = created(api, searched(search={"trials": 4}))
    done = api.run_all(lambda t: 0.5)
    text = api.call("GET", f"/studies/{study['id']}/export", params={"format": "csv"}).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [r["params.schedule"] for r in rows] == [t["params"]["schedule"] for t in done]
    file = tmp_path / "study.db"
    file.write_bytes(api.call("GET", f"/studies/{study['id']}/export", params={"format": "optuna"}).content)
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    loaded = optuna.load_study(study_name=study["id"], storage=storage).trials
    storage.engine.dispose()
    for mine, theirs in zip(done, loaded, strict=True):
        several = [name for name in SPACE if name not in ("max_grad_norm", "optimizer")]
        assert {n: theirs.params[n] for n in several} == {n: mine["params"][n] for n in several}


def test_a_batch_that_ran_out_of_memory_bars_no_smaller_one(api: Api) -> None:
    space = {
        "r1": 2,
        "r2": 4,
        "r": 4,
        "alpha": 16,
        "learning_rate": {"choices": [0.001, 0.002]},
        "batch_size": {"choices": [4, 8]},
    }
    body = make_study(
        search_space=space, search={"sampler": "grid", "trials": 50}, budget={"min_fill": 0}, compare={"seeds": 0}
    )
    body["training"] = TRAINING
    study = created(api, body)
    while (lease := api.lease()) is not None:
        if lease["trial"]["params"]["batch_size"] == 8:
            failure = {"kind": "out_of_memory", "message": "m"}
            api.finish(lease, value=None, state="infeasible", failure=failure)
        else:
            api.finish(lease, value=0.5)
    states = sorted((t["params"]["batch_size"], t["state"]) for t in trials_of(api, study))
    assert states == [(4, "completed"), (4, "completed"), (8, "infeasible")]


FIXED: dict[str, Any] = {"r1": 2, "r2": 4, "r": 4, "alpha": 16, "learning_rate": 0.001}


def test_a_configuration_that_no_runner_could_read_is_refused(api: Api) -> None:
    """Each value is fine by itself; together with the study's training they are not."""
    body = make_study(search_space={"optimizer": {"choices": ["adamw", "adamw_fused"]}})
    body["training"] = {**TRAINING, "lora_plus_ratio": 4}
    study = created(api, body)
    response = api.call("POST", f"/studies/{study['id']}/trials", json={"params": {**FIXED, "optimizer": "sgd"}})
    assert response.status_code == 422
    assert "lora_plus_ratio is for adamw" in response.text
    body["search"] = {**body["search"], "start": [{"r1": 2, "r2": 4, "optimizer": "sgd"}]}
    response = api.call("POST", "/studies", json=body)
    assert [f["pointer"] for f in response.json()["errors"]] == ["#/search/start/0"]


def test_named_batches_stay_within_what_was_admitted(api: Api) -> None:
    body = make_study(search_space={"batch_size": {"choices": [4, 8]}}, resources={"gpus": 2, "processes": 2})
    body["training"] = TRAINING
    study = created(api, body)
    for size, words in ((5, "unevenly; 4 would do"), (16, "admitted for batches of up to 8")):
        response = api.call("POST", f"/studies/{study['id']}/trials", json={"params": {**FIXED, "batch_size": size}})
        (fault,) = response.json()["errors"]
        assert fault["pointer"] == "#/params/batch_size"
        assert words in fault["detail"]


def test_zero_beside_a_logarithm_lies_outside_the_space(api: Api) -> None:
    body = make_study(
        search_space={"weight_decay": {"low": 1e-4, "high": 0.1, "log": True}},
        search={"start": [{"r1": 2, "r2": 4, "weight_decay": 0}], "trials": 2},
    )
    study = created(api, body)
    api.run_all(lambda t: 0.5)
    assert min(trials_of(api, study), key=lambda t: t["number"])["params"]["weight_decay"] == 0


@pytest.mark.parametrize("sampler", ["tpe", "qmc", "grid"])
def test_a_step_runs_once(api: Api, sampler: str) -> None:
    space = {**FIXED, "dropout": {"low": 0, "high": 0.7, "step": 0.1}}
    created(api, make_study(search_space=space, search={"sampler": sampler, "trials": 30}, budget={"min_fill": 0}))
    found = [t["params"]["dropout"] for t in api.run_all(lambda t: 0.5)]
    assert sorted(found) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def test_tuning_takes_as_many_rates_of_a_stepped_range_as_were_asked_for(api: Api) -> None:
    body = make_study(
        search_space={"learning_rate": {"low": 1e-4, "high": 5e-3, "step": 1e-4}},
        search={"trials": 2},
        compare={"seeds": 2, "tuning_trials": 4, "predictors": [], "baselines": ["lora"]},
    )
    study = created(api, body)
    api.run_all(lambda t: 0.5)
    rates = [t["params"]["learning_rate"] for t in trials_of(api, study, phase="tuning") if t["method"] == "lora"]
    assert 3 <= len(rates) == len(set(rates)) <= 4


def test_a_single_value_counts_as_the_studys_own(api: Api) -> None:
    """Twenty-seven epochs make the rungs of 27 evaluations, and options that judge from the fourth on are fine."""
    body = make_study(
        search_space={"epochs": 27}, search={"pruner": "asha", "pruner_options": {"min_resource": 4}, "trials": 2}
    )
    body["training"] = {"max_length": 16}
    created(api, body)
    lease = api.lease()
    assert lease is not None
    assert lease["trial"]["study"]["training"]["epochs"] == 27


def test_a_section_with_every_key_conflicts_where_it_differs_from_the_default(api: Api) -> None:
    adapter = {"target_modules": "all-linear", "dropout": 0.2, "init_weights": "kaiming", "scaling": "cdka"}
    body = make_study(search_space={"dropout": {"low": 0, "high": 0.3}}, adapter=adapter)
    (fault,) = api.call("POST", "/studies", json=body).json()["errors"]
    assert fault["pointer"] == "#/adapter/dropout"


def test_a_boolean_is_no_number(api: Api) -> None:
    response = api.call("POST", "/studies", json=make_study(search_space={"weight_decay": True}))
    (fault,) = response.json()["errors"]
    assert "not true or false" in fault["detail"]
