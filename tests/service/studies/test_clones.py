"""A trial is cloned with changes, anew or from its adapter on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Api

from ..helpers import lease_of, post, study_of, trials_of

pytestmark = pytest.mark.usefixtures("in_order")


def with_one_completed(api: Api, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A study with room for more, and its first, completed trial."""
    study = api.create(search={"trials": 4, "concurrency": 1, **changes.pop("search", {})}, **changes)
    lease = lease_of(api)
    api.finish(lease, value=0.6, artifact=f"/artifacts/studies/{study['id']}/trials/00000/attempt-1/adapter")
    return study, trials_of(api, study)[0]


def clone(api: Api, study: dict[str, Any], body: dict[str, Any]) -> Any:
    return post(api, f"/studies/{study['id']}/trials", json=body)


def test_a_clone_changes_what_is_named_and_keeps_the_rest(api: Api) -> None:
    study, source = with_one_completed(api)
    made = clone(api, study, {"from": source["id"], "params": {"learning_rate": 0.0007}})
    assert made.status_code == 201, made.text
    trial = made.json()
    assert trial["params"] == {**source["params"], "learning_rate": 0.0007}
    assert (trial["cloned_from"], trial["start_from"], trial["phase"]) == (source["id"], None, "search")
    leased = lease_of(api)["trial"]
    assert (leased["id"], leased["start_from"]) == (trial["id"], None)


def test_a_warm_clone_starts_from_the_adapter_and_competes_with_no_trial(api: Api) -> None:
    study, source = with_one_completed(api)
    made = clone(api, study, {"from": source["id"], "params": {"learning_rate": 0.0007}, "warm": True}).json()
    lease = lease_of(api)
    assert lease["trial"]["start_from"] == source["artifact"] == made["start_from"]
    api.finish(lease, value=0.99)
    done = api.run_all(lambda trial: 0.5)
    assert len(done) == 2, "it counts as one of the four trials"
    assert study_of(api, study)["state"] == "completed"
    comparison = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert (comparison["best_trial"]["number"], comparison["best_trial"]["value"]) == (0, 0.6)
    front = api.call("GET", f"/studies/{study['id']}/front").json()["trials"]
    assert [t["number"] for t in front] == [0]


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({"from": "nothing"}, "#/from", "no trial nothing in this study"),
        ({"params": {"r1": 3}}, "#/params/r1", "does not divide"),
        ({"params": {"r": 400}}, "#/params/r", "over the budget"),
        ({"params": {"dropout": 0.1}}, "#/params/dropout", "search_space does not name dropout"),
        ({"params": {"factor": 4}}, "#/params/factor", "not permitted"),
        ({"params": {"r1": 1, "r": 1}, "warm": True}, "#/params/r1", "leave r1 out to start"),
        ({"warm": "yes"}, "#/warm", "boolean"),
    ],
)
def test_a_clone_that_cannot_run_is_refused_with_a_remedy(
    api: Api, body: dict[str, Any], pointer: str, words: str
) -> None:
    study, source = with_one_completed(api, search_space={"r1": 2, "r2": 4})
    answer = clone(api, study, {"from": source["id"], **body})
    assert answer.status_code == 422, answer.text
    assert any(e["pointer"] == pointer and words in e["detail"] for e in answer.json()["errors"]), answer.text
    assert len(trials_of(api, study)) == 1


def test_a_trial_of_another_study_is_not_cloned(api: Api) -> None:
    _, source = with_one_completed(api)
    other = api.create(search={"trials": 2})
    answer = clone(api, other, {"from": source["id"]})
    assert answer.status_code == 422
    assert "in this study" in answer.json()["errors"][0]["detail"]


def test_warm_needs_a_trial_that_left_an_adapter(api: Api) -> None:
    study = api.create(search={"trials": 3, "concurrency": 1})
    api.finish(lease_of(api), "infeasible", None, failure={"kind": "diverged", "message": "nan"})
    source = trials_of(api, study)[0]
    answer = clone(api, study, {"from": source["id"], "warm": True})
    assert answer.json()["errors"] == [
        {
            "pointer": "#/warm",
            "detail": "trial 0 is infeasible and has left no adapter; leave warm out, or name another",
        }
    ]
    alone = clone(api, study, {"params": {"r1": 2, "r2": 4, "r": 4, "alpha": 8, "learning_rate": 1e-3}, "warm": True})
    assert alone.json()["errors"] == [{"pointer": "#/warm", "detail": "name the trial to start from, with from"}]


def test_sizes_of_other_methods_are_the_budgets(api: Api) -> None:
    study, source = with_one_completed(api, search_space={"method": "lora"}, search={"start": []})
    assert source["method"] == "lora"
    answer = clone(api, study, {"from": source["id"], "params": {"r": source["params"]["r"] + 1}})
    assert "the budget determines" in answer.json()["errors"][0]["detail"]
    answer = clone(api, study, {"from": source["id"], "params": {"r1": 2}})
    assert "lora has no parameter r1" in answer.json()["errors"][0]["detail"]
    assert clone(api, study, {"from": source["id"], "params": {"learning_rate": 1e-4}}).json()["method"] == "lora"


def test_a_configuration_without_from_names_every_parameter(api: Api) -> None:
    study = api.create(search={"trials": 2})
    answer = clone(api, study, {"params": {"r1": 2, "r2": 4}})
    assert [e["pointer"] for e in answer.json()["errors"]] == ["#/params/r", "#/params/alpha", "#/params/learning_rate"]


def test_a_baselines_run_is_not_cloned_into_a_search_of_another_method(api: Api) -> None:
    study = api.create(search={"trials": 1}, compare={"seeds": 1, "learning_rate": "shared", "baselines": ["lora"]})
    api.run_all(lambda trial: 0.5)
    api.call("PATCH", f"/studies/{study['id']}", json={"trials": 3})
    lora = next(t for t in trials_of(api, study) if t["method"] == "lora")
    answer = clone(api, study, {"from": lora["id"]})
    assert answer.json()["errors"] == [
        {"pointer": "#/from", "detail": "the study searches cdka, not lora; clone another trial"}
    ]
