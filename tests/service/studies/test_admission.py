"""Studies that do not fit in memory are rejected at submit; shares of a GPU follow from the memory estimate."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Api, make_study

GIB = 2**30


def refused(api: Api, **changes: Any) -> list[dict[str, str]]:
    answer = api.call("POST", "/studies", json=make_study(**changes))
    assert answer.status_code == 422, answer.text
    return answer.json()["errors"]  # type: ignore[no-any-return]


def test_a_study_shows_the_memory_estimate(api: Api) -> None:
    small, large = (api.create(training={"batch_size": size}) for size in (8, 64))
    for study in (small, large):
        memory = study["memory"]
        assert memory["peak"] == memory["weights"] + memory["training"] + memory["activations"]
        assert memory["training"] > 0
    assert large["memory"]["activations"] > 4 * small["memory"]["activations"]
    assert large["memory"]["weights"] == small["memory"]["weights"]


def test_a_study_that_does_not_fit_is_rejected_with_a_remedy(api: Api) -> None:
    (fault,) = refused(api, resources={"gpus": 1, "gpu_memory_gib": 0.5})
    assert fault["pointer"] == "#/resources/gpu_memory_gib"
    assert "would get 0.50" in fault["detail"]
    assert "batch_size" in fault["detail"]
    (fault,) = refused(api, resources={"gpus": 0.25, "gpu_memory_gib": 2})
    assert "would get 0.50" in fault["detail"]
    (fault,) = refused(api, resources={"memory_gib": 0.5})
    assert fault["pointer"] == "#/resources/memory_gib"
    assert api.create(resources={"gpus": 1, "gpu_memory_gib": 80})["spec"]["resources"]["gpus"] == 1


def test_the_share_of_a_gpu_follows_from_the_estimate(api: Api) -> None:
    study = api.create(resources={"gpus": "fit", "gpu_memory_gib": 8}, search={"concurrency": 9, "trials": 9})
    share = study["spec"]["resources"]["gpus"]
    need = study["memory"]["peak"] / GIB * 1.1 + 0.75
    assert need / 8 <= share < need / 8 + 0.05
    (item,) = api.call("GET", "/demand", "worker").json()["items"]
    assert item["gpus"] == share
    assert api.lease(gpus=share - 0.01) is None
    assert api.lease(gpus=share) is not None
    (fault,) = refused(api, resources={"gpus": "fit", "gpu_memory_gib": 0.5})
    assert fault["pointer"] == "#/resources/gpu_memory_gib"


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"gpus": "fit"}, "needs gpu_memory_gib"),
        ({"gpus": "fit", "gpu_memory_gib": 8, "processes": 2}, "a share of one GPU"),
        ({"gpus": 1.5}, "whole number"),
        ({"gpus": 2, "processes": 3}, "2 processes"),
        ({"custom": {"nvme": 0}}, "greater than 0"),
    ],
)
def test_inconsistent_resources_are_rejected(api: Api, resources: dict[str, Any], words: str) -> None:
    faults = refused(api, resources=resources)
    assert any(words in f["detail"] for f in faults), faults


def test_processes_share_a_batch_evenly(api: Api) -> None:
    (fault,) = refused(api, resources={"processes": 3, "cpus": 3}, training={"batch_size": 8})
    assert fault["pointer"] == "#/training/batch_size"
    assert "9 would do" in fault["detail"]
