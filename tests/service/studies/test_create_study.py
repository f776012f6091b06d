"""POST /studies: valid studies, and every kind of fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Api, make_study


def faults(api: Api, study: Any) -> dict[str, str]:
    response = api.call("POST", "/studies", json=study)
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == "urn:cdka:problem:invalid-study"
    assert api.call("GET", "/studies").json()["items"] == []
    return {e["pointer"]: e["detail"] for e in problem["errors"]}


def test_creating_a_study_returns_predictions_and_counts(api: Api) -> None:
    study = api.create()
    layers = {(x["d_in"], x["d_out"]) for x in study["layers"]}
    assert layers == {(32, 32), (32, 64), (64, 32)}
    assert study["budget"]["adapted_layers"] == 13
    cost = sum(4 * (2 * x["d_in"] // 4 + 4 * x["d_out"] // 2) for x in study["layers"])
    assert study["budget"]["max_parameters"] == cost
    assert [p["predictor"] for p in study["predictions"]] == ["guideline", "alignment"]
    for ranking in study["predictions"]:
        pairs = [(p["r1"], p["r2"]) for p in ranking["best"]]
        assert len(pairs) == len(set(pairs)), "each pair once, at its best r"
    assert all(p["parameters"] <= cost for ranking in study["predictions"] for p in ranking["best"])
    assert study["state"] == "queued"
    for s in study["structures"]:
        assert 0.85 * cost <= s["r_low"] * s["unit_parameters"] <= s["r_high"] * s["unit_parameters"] <= cost
    read = api.call("GET", f"/studies/{study['id']}").json()
    assert read == {k: v for k, v in study.items() if k not in ("predictions", "layers")}


@pytest.mark.parametrize(
    ("change", "pointer", "detail"),
    [
        ({"name": ""}, "#/name", "at least 1 character"),
        ({"nmae": "x"}, "#/nmae", "unknown key"),
        ({"model": {"path": "nowhere"}}, "#/model/path", "no model can be read"),
        ({"model": {"path": "../outside"}}, "#/model/path", "outside of the allowed data directories"),
        ({"model": {"path": "/etc"}}, "#/model/path", "outside of the allowed data directories"),
        ({"model": {"path": "a/b/c"}}, "#/model/path", "nor a hub id"),
        ({"task": {"kind": "regression"}}, "#/task/kind", "sequence_classification"),
        ({"task": {"metric": "bleu"}}, "#/task/metric", "available: accuracy, f1"),
        ({"task": {"columns": {"text": "body"}}}, "#/task/columns/text", "has no column 'body'; it has: text, label"),
        (
            {"task": {"dataset": {"path": "json", "data_files": {"train": "gone.jsonl"}}}},
            "#/task/dataset/data_files/train",
            "there is no file 'gone.jsonl'",
        ),
        (
            {"task": {"dataset": {"path": "json", "data_files": {"train": "../../etc/passwd.jsonl"}}}},
            "#/task/dataset/data_files/train",
            "outside of the allowed",
        ),
        (
            {"task": {"dataset": {"path": "json", "data_files": {"test": "test.jsonl"}}}},
            "#/task/dataset/data_files",
            "needs a train split",
        ),
        ({"task": {"dataset": {"path": "json"}}}, "#/task/dataset/data_files", "needs data_files"),
        (
            {"task": {"dataset": {"path": "pickle", "data_files": {"train": "train.jsonl"}}}},
            "#/task/dataset/path",
            "one of",
        ),
        ({"adapter": {"target_modules": ["nope"]}}, "#/adapter/target_modules", "linear layers are named"),
        ({"adapter": {"target_modules": ["word_embeddings"]}}, "#/adapter/target_modules", "is a Embedding"),
        ({"adapter": {"dropout": 1}}, "#/adapter/dropout", "less than 1"),
        ({"training": {"epochs": 0}}, "#/training/epochs", "greater than or equal to 1"),
        ({"training": {"max_length": 65}}, "#/training/max_length", "more than the 64 positions of 'tiny-bert'"),
        ({"training": {"learning_rate": 1}}, "#/training/learning_rate", "unknown key"),
        ({"budget": {"lora_rank": 8}}, "#/budget", "exactly one way"),
        ({"budget": {"configuration": None}}, "#/budget", "exactly one way"),
        ({"budget": {"configuration": None, "max_parameters": 10}}, "#/budget", "the smallest feasible one costs"),
        ({"budget": {"configuration": {"r1": 2, "r2": 7, "r": 1}}}, "#/budget", "r2=7 does not divide d_in=32"),
        ({"search_space": {"r1": {"choices": [1, 3]}}}, "#/search_space/r1/choices/1", "r1=3 does not divide d_out=32"),
        ({"search_space": {"r2": 5}}, "#/search_space/r2", "divisors near it: 4, 8"),
        ({"search_space": {"r1": {"choices": []}}}, "#/search_space/r1/choices", "at least 1 item"),
        ({"search_space": {"r": "all"}}, "#/search_space/r", "fill"),
        ({"search_space": {"r": {"low": 9, "high": 2}}}, "#/search_space/r", "low=9 is above high=2"),
        ({"search_space": {"r": {"low": 60, "high": 64}}}, "#/search_space", "widen r1, r2 or r"),
        ({"search_space": {"alpha": {"low": 8}}}, "#/search_space/alpha/high", "required"),
        ({"search_space": {"learning_rate": {"low": 1, "high": 0.1}}}, "#/search_space/learning_rate", "not below"),
        ({"search_space": {"learning_rate": -1}}, "#/search_space/learning_rate", "greater than 0"),
        ({"search_space": {"learning_rate": [1]}}, "#/search_space/learning_rate", "number"),
        ({"search": {"sampler": "magic"}}, "#/search/sampler", "available: auto, tpe, random"),
        (
            {
                "search": {"sampler": "cmaes", "pruner": "none"},
                "objectives": [
                    {"metric": "accuracy", "direction": "maximize"},
                    {"metric": "parameters", "direction": "minimize"},
                ],
            },
            "#/search/sampler",
            "cmaes searches for one objective",
        ),
        ({"search": {"pruner": "shears"}}, "#/search/pruner", "available: asha, hyperband, median"),
        ({"search": {"trials": 0}}, "#/search/trials", "greater than or equal to 1"),
        ({"objectives": [{"metric": "speed", "direction": "maximize"}]}, "#/objectives/0/metric", "unknown metric"),
        ({"objectives": [{"metric": "loss", "direction": "maximize"}]}, "#/objectives/0/direction", "to minimize"),
        ({"compare": {"predictors": ["oracle"]}}, "#/compare/predictors/0", "guideline"),
        (
            {"compare": {"seeds": 2, "learning_rate": "tuned"}, "search_space": {"learning_rate": 1e-3}},
            "#/compare/learning_rate",
            "needs search_space.learning_rate to be a range",
        ),
        ({"training": {"packing": True}}, "#/training/packing", "packing is for causal_lm"),
        ({"resources": {"cpus": 0}}, "#/resources/cpus", "greater than 0"),
    ],
)  # fmt: skip
def test_every_fault_names_its_place(api: Api, change: dict[str, Any], pointer: str, detail: str) -> None:
    found = faults(api, make_study(**change))
    assert pointer in found, found
    assert detail in found[pointer]


def test_all_faults_are_reported_at_once(api: Api) -> None:
    study = make_study(
        name="",
        model={"path": "nowhere"},
        task={"metric": "bleu", "columns": {"label": "topic"}},
        search={"pruner": "shears", "sampler": "magic"},
        training={"epochs": -1},
    )
    assert set(faults(api, study)) == {
        "#/name",
        "#/model/path",
        "#/task/metric",
        "#/task/columns/label",
        "#/search/pruner",
        "#/search/sampler",
        "#/training/epochs",
    }


@pytest.mark.parametrize("body", [[], "study", 7, {}])
def test_an_invalid_study_is_rejected(api: Api, body: Any) -> None:
    assert faults(api, body)


def test_a_body_that_is_not_json_is_rejected(api: Api) -> None:
    headers = {"content-type": "application/json"}
    response = api.call("POST", "/studies", content=b"{", headers=headers)
    assert response.status_code == 422
    assert response.json()["type"] == "urn:cdka:problem:invalid-request"


@pytest.mark.parametrize("line", ["", "not json\n", "[1, 2]\n"])
def test_a_file_that_is_not_json_lines_is_rejected(api: Api, data_root: Path, line: str) -> None:
    (data_root / "odd.jsonl").write_text(line)
    dataset = {"path": "json", "data_files": {"train": "odd.jsonl"}}
    found = faults(api, make_study(task={"dataset": dataset}))
    assert "cannot be read as json" in found["#/task/dataset/data_files/train"]


def test_a_link_that_leads_out_of_the_data_directories_is_rejected(api: Api, data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text(json.dumps({"text": "a", "label": "b"}))
    link = data_root / "link.jsonl"
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "secret.jsonl")
    dataset = {"path": "json", "data_files": {"train": "link.jsonl"}}
    found = faults(api, make_study(task={"dataset": dataset}))
    assert "outside of the allowed" in found["#/task/dataset/data_files/train"]


@pytest.mark.parametrize("config", ["{", "[]", '{"model_type": "nope"}', '{"model_type": "bert", "hidden_size": "x"}'])
def test_a_model_folder_that_holds_no_model_is_a_fault_not_a_crash(api: Api, data_root: Path, config: str) -> None:
    (data_root / "broken").mkdir(exist_ok=True)
    (data_root / "broken" / "config.json").write_text(config)
    assert "no model can be read" in faults(api, make_study(model={"path": "broken"}))["#/model/path"]


def test_a_budget_can_be_given_in_four_ways(api: Api) -> None:
    for way in (
        {"lora_rank": 4},
        {"max_parameters": 5000},
        {"fraction": 0.3},
        {"configuration": {"r1": 1, "r2": 2, "r": 3}},
    ):
        study = make_study()
        study["budget"] = {**way, "min_fill": 0.5}
        created = api.call("POST", "/studies", json=study)
        assert created.status_code == 201, created.text
    assert created.json()["budget"]["max_parameters"] > 0


def test_predictions_without_a_study(api: Api) -> None:
    body = {"model": {"path": "tiny-bert"}, "budget": {"lora_rank": 8}}
    response = api.call("POST", "/predictions", "viewer", json=body)
    assert response.status_code == 200
    assert response.json()["predictions"][0]["best"][0]["r1"] == 2
    assert api.call("GET", "/studies").json()["items"] == []
    body = {"model": {"path": "nowhere"}, "task": {"kind": "chess"}, "budget": {"lora_rank": 8}}
    assert api.call("POST", "/predictions", json=body).status_code == 422
