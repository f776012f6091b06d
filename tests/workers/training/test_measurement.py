"""The measured predictor: a real runner measures the model's gradients before the search."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cdka
from tests.conftest import Api
from workers.runner.runner import Poisoned, Runner
from workers.training import measurement as measuring

WITH_MEASURED = {"predictors": ["guideline", "measured", "alignment"], "seeds": 1, "learning_rate": "shared"}


def rankings(api: Api, study: dict[str, Any]) -> dict[str, Any]:
    return {r["predictor"]: r for r in api.call("GET", f"/studies/{study['id']}/predictions").json()}


def run(runner: Runner) -> Any:
    lease = runner._next_lease()
    assert lease is not None
    runner.run_lease(lease)
    return lease.trial


def test_a_measurement_precedes_trial_0_and_does_not_change_the_search(api: Api, runner: Runner) -> None:
    plain = api.create(search={"trials": 2}, priority=-1, training={"epochs": 1})
    study = api.create(search={"trials": 2}, compare=WITH_MEASURED, training={"epochs": 1})
    assert study["phase"] == "measurement"
    assert [p["predictor"] for p in study["predictions"]] == ["guideline", "measured", "alignment"]
    assert (study["predictions"][1]["state"], study["predictions"][1]["best"]) == ("pending", [])
    assert run(runner).phase == "measurement"
    found = rankings(api, study)["measured"]
    assert (found["state"], found["reason"]) == ("ready", None)
    assert found["ranked"] == rankings(api, study)["guideline"]["ranked"]
    scores = [p["score"] for p in found["best"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < s <= 1 + 1e-6 for s in scores)
    while run_next(runner):
        pass
    mine, theirs = (
        [t for t in api.call("GET", f"/studies/{s['id']}/trials").json()["items"] if t["phase"] == "search"]
        for s in (study, plain)
    )
    assert [t["number"] for t in mine] == [0, 1]
    assert [t["params"] for t in mine] == [t["params"] for t in theirs]
    ended = api.call("GET", f"/studies/{study['id']}").json()
    assert ended["state"] == "completed"
    comparison = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert {c["name"] for c in comparison["candidates"]} >= {"best", "guideline", "measured", "alignment"}
    assert {p["predictor"] for p in comparison["predictors"]} == {"guideline", "measured", "alignment"}


def run_next(runner: Runner) -> bool:
    lease = runner._next_lease()
    if lease is not None:
        runner.run_lease(lease)
    return lease is not None


def test_the_scores_are_the_shares_of_full_fine_tunings_gradients(
    api: Api, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed again here: the same batches, a backward pass of all weights, the SVD of every rearranged gradient."""
    seen: dict[str, Any] = {}
    collect = cdka.collect_spectra

    def collecting(model: Any, batches: Any, shapes: Any, candidates: Any, loss: Any, seed: int) -> Any:
        seen.update(model=model, batches=batches, shapes=shapes)
        return collect(model, batches, shapes, candidates, loss, seed=seed)

    monkeypatch.setattr(measuring.cdka, "collect_spectra", collecting)
    study = api.create(search={"trials": 1}, compare=WITH_MEASURED)
    run(runner)
    assert len(seen["batches"]) == 4  # of 8 examples each
    model = seen["model"].eval()
    energy, total = 0.0, 0.0
    best = rankings(api, study)["measured"]["best"][0]
    for batch in seen["batches"]:
        model.zero_grad()
        for p in model.parameters():
            p.requires_grad_(True)
        model(**batch).loss.backward()
        for shape in seen["shapes"]:
            gradient = model.get_submodule(shape.name).weight.grad
            total += float(gradient.square().sum())
            values = torch.linalg.svdvals(cdka.rearrange(gradient, best["r1"], best["r2"]))
            energy += float(values[: best["r"]].square().sum())
    assert best["score"] == pytest.approx(energy / total, rel=1e-4)


def test_a_failed_measurement_does_not_stop_the_search(
    api: Api, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no gradient today")

    study = api.create(search={"trials": 1, "retries": 0}, compare=WITH_MEASURED, training={"epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr("workers.runner.runner.measure", fail)
        with pytest.raises(Poisoned):
            run(runner)
    found = rankings(api, study)["measured"]
    assert found["state"] == "failed"
    assert "no gradient today" in found["reason"]
    second = Runner(runner.client, runner.settings, "runner-2")
    assert run(second).phase == "search"
    notes = api.call("GET", f"/studies/{study['id']}/comparison").json()["notes"]
    assert any("measured could not be measured" in note for note in notes)
    # Once the fault is fixed, the measurement can be retried.
    (measurement,) = api.call("GET", f"/studies/{study['id']}/trials", params={"phase": "measurement"}).json()["items"]
    assert measurement["number"] == -1
    assert api.call("POST", f"/trials/{measurement['id']}/retry").status_code == 200
    while run_next(second):
        pass
    assert rankings(api, study)["measured"]["state"] == "ready"


def test_a_measurement_must_cover_all_candidates(api: Api) -> None:
    study = api.create(search={"trials": 1}, compare=WITH_MEASURED)
    lease = api.lease()
    assert lease is not None
    asked = lease["trial"]["params"]["candidates"]
    entries = [{"r1": a, "r2": b, "r": r, "score": 0.5, "reason": "said"} for a, b, r in asked]
    path = f"/leases/{lease['id']}/result"
    short = api.call("PUT", path, "worker", json={"state": "completed", "predictions": entries[1:]})
    assert short.status_code == 422
    assert f"each of the {len(asked)}" in short.json()["errors"][0]["detail"]
    assert api.call("PUT", path, "worker", json={"state": "completed", "predictions": entries}).status_code == 200
    assert rankings(api, study)["measured"]["best"][0]["score"] == 0.5


def test_predictions_without_a_study_reject_measured(api: Api) -> None:
    body = {"model": {"path": "tiny-bert"}, "budget": {"lora_rank": 4}, "predictors": ["alignment", "measured"]}
    answer = api.call("POST", "/predictions", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "#/predictors/1"
    body["predictors"] = ["alignment"]
    assert [p["predictor"] for p in api.call("POST", "/predictions", json=body).json()["predictions"]] == ["alignment"]


def test_stopping_a_measurement_starts_the_search(api: Api) -> None:
    """Works even before a trial of the study has run."""
    study = api.create(search={"trials": 1}, compare=WITH_MEASURED)
    (measurement,) = api.call("GET", f"/studies/{study['id']}/trials").json()["items"]
    assert api.call("POST", f"/trials/{measurement['id']}/stop").status_code == 200
    assert api.call("GET", f"/studies/{study['id']}").json()["phase"] == "search"
    lease = api.lease()
    assert lease is not None
    assert lease["trial"]["number"] == 0


def test_a_measurement_ranks_each_group_of_layers(api: Api, runner: Runner) -> None:
    groups = {"attention": ["query", "key", "value"], "mlp": ["intermediate.dense"]}
    study = api.create(adapter={"groups": groups}, search={"trials": 1}, compare=WITH_MEASURED, training={"epochs": 1})
    assert study["predictions"][1]["groups"] == {}
    run(runner)
    found = rankings(api, study)["measured"]
    assert found["state"] == "ready"
    assert set(found["groups"]) == set(groups)
    for group, best in found["groups"].items():
        assert set(best[0]) == set(found["best"][0])
        scores = [p["score"] for p in best]
        assert scores == sorted(scores, reverse=True), group
    assert found["ranked"] == rankings(api, study)["guideline"]["ranked"]
    assert found["groups"]["attention"][0]["score"] != found["groups"]["mlp"][0]["score"]
