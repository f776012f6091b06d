"""Pruner options that could stop no trial, or would leave none, are rejected with what would be right."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Api, make_study


@pytest.mark.parametrize(
    ("pruner", "options", "epochs", "key", "words"),
    [
        ("asha", {"min_resource": 50}, 3, "min_resource", "judges from evaluation 50 on"),
        ("asha", {"min_resource": 3}, 3, "min_resource", "the last one is not judged"),
        ("asha", {"min_early_stopping_rate": 1}, 3, "min_early_stopping_rate", "from evaluation 3 on"),
        ("hyperband", {"min_resource": 9}, 9, "min_resource", "train for more epochs"),
        ("hyperband", {"min_resource": 4, "max_resource": 2}, 9, "max_resource", "below min_resource"),
        ("median", {"n_warmup_steps": 5}, 5, "n_warmup_steps", "from evaluation 5 on"),
        ("percentile", {"n_warmup_steps": 5}, 3, "n_warmup_steps", "from evaluation 5 on"),
        ("percentile", {"percentile": 100}, 3, "percentile", "100 none"),
        ("percentile", {"percentile": 0}, 3, "percentile", "stops every trial"),
        ("patient", {"patience": 2}, 4, "patience", "from evaluation 4 on"),
        ("wilcoxon", {"n_startup_steps": 8}, 8, "n_startup_steps", "from evaluation 8 on"),
        ("wilcoxon", {"p_threshold": 0}, 8, "p_threshold", "stops no trial"),
    ],
)
def test_pruner_options_without_effect_are_rejected(
    api: Api, pruner: str, options: dict[str, Any], epochs: int, key: str, words: str
) -> None:
    body = make_study(search={"pruner": pruner, "pruner_options": options}, training={"epochs": epochs})
    response = api.call("POST", "/studies", json=body)
    assert response.status_code == 422
    (fault,) = response.json()["errors"]
    assert fault["pointer"] == f"#/search/pruner_options/{key}"
    assert words in fault["detail"]


@pytest.mark.parametrize(
    ("pruner", "options", "training"),
    [
        ("asha", {}, {"epochs": 1}),
        ("asha", {"min_resource": 2}, {"epochs": 3}),
        ("asha", {"min_resource": 50}, {"epochs": 3, "eval_steps": 10}),
        ("hyperband", {"max_resource": 3}, {"epochs": 3}),
        ("median", {"n_warmup_steps": 1}, {"epochs": 2}),
        ("patient", {"patience": 1}, {"epochs": 4}),
        ("wilcoxon", {}, {"epochs": 2}),
    ],
)
def test_pruner_options_with_an_effect_and_defaults_are_taken(
    api: Api, pruner: str, options: dict[str, Any], training: dict[str, Any]
) -> None:
    body = make_study(search={"pruner": pruner, "pruner_options": options}, training=training)
    assert api.call("POST", "/studies", json=body).status_code == 201
