"""Linked studies: the same study at several budgets, on several models or tasks, or searched again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli.program import app
from service.domain.group_spec import expand, is_group
from service.errors import InvalidStudy
from service.schemas.study_file import StudyFile
from tests.conftest import Api, make_study
from tests.service.helpers import login, post, study_of

BUDGETS = [{"lora_rank": 2, "min_fill": 0.5}, {"lora_rank": 4, "min_fill": 0.5}, {"lora_rank": 8, "min_fill": 0.5}]
COMPARE = {"seeds": 3, "learning_rate": "shared", "baselines": ["lora"], "predictors": ["guideline"]}


def body_of(**changes: Any) -> dict[str, Any]:
    body = make_study(**{"search": {"trials": 3, "sampler": "random"}, "compare": COMPARE, **changes})
    section = next((s for s in ("budget", "model", "task") if f"{s}s" in body), None)
    if section is not None:
        del body[section]
    return body


def grouped(api: Api, **changes: Any) -> dict[str, Any]:
    response = post(api, "/groups", json=body_of(**changes))
    assert response.status_code == 201, response.text
    return dict(response.json())


def run_all(api: Api, value: Callable[[dict[str, Any]], float]) -> None:
    """Run every trial; ``value`` sees its candidate, too."""
    api.run_all(lambda t: value({**t, "candidate": api.call("GET", f"/trials/{t['id']}").json()["candidate"]}))


def by_budget(gain: float) -> Callable[[dict[str, Any]], float]:
    """What a search finds is better by ``gain`` the larger the budget; seeds differ a little, and alike for all."""

    def value(trial: dict[str, Any]) -> float:
        noise = trial["seed"] % 7 / 1000 + trial["params"].get("r1", 1) % 3 / 10_000
        searched = trial["phase"] == "search" or trial["candidate"] == "best"
        rank = trial["study"]["budget"]["lora_rank"] or 1
        return 0.5 + noise + searched * (trial["seed"] % 5 / 2000) + (gain * rank if searched and rank > 2 else 0.0)

    return value


def test_budgets_make_linked_studies_and_one_answer(api: Api) -> None:
    made = grouped(api, budgets=BUDGETS)
    assert made["axis"] == "budgets"
    labels = [s["group"]["label"] for s in made["studies"]]
    assert labels == ["LoRA rank 2", "LoRA rank 4", "LoRA rank 8"]
    assert [s["name"] for s in made["studies"]] == [f"tiny, {label}" for label in labels]
    before = api.call("GET", f"/groups/{made['id']}").json()
    assert "3 of 3 studies have no verdict yet" in before["sentences"][-1]
    run_all(api, by_budget(0.02))
    found = api.call("GET", f"/groups/{made['id']}").json()
    assert [s["label"] for s in found["studies"]] == labels
    assert [s["state"] for s in found["studies"]] == ["completed"] * 3
    assert found["studies"][0]["budget"] < found["studies"][2]["budget"]
    assert found["pays_from"] == "LoRA rank 4"
    assert found["studies"][2]["verdict"] == "better"
    assert found["studies"][2]["gain"]["confidence"] == pytest.approx(1 - 0.05 / 3)
    assert found["sentences"][0].startswith("The smallest budget at which searching beat the guideline is LoRA rank 4")
    assert any("hold for all 3 studies" in s for s in found["sentences"])
    rows = {c["name"]: c for c in found["studies"][2]["candidates"]}
    assert {"best", "guideline", "lora"} <= set(rows)


def test_where_nothing_pays_it_says_so(api: Api) -> None:
    made = grouped(api, budgets=BUDGETS)
    run_all(api, by_budget(0.0))
    found = api.call("GET", f"/groups/{made['id']}").json()
    assert found["pays_from"] is None
    assert "at none of the 3 budgets" in found["sentences"][0]


def test_a_search_that_is_repeated_is_judged_as_a_procedure(api: Api) -> None:
    body = body_of()
    body["search"]["repeats"] = 4
    made = post(api, "/groups", json=body).json()
    assert made["axis"] == "repeats"
    assert [s["spec"]["search"]["seed"] for s in made["studies"]] == [0, 1, 2, 3]
    assert [s["spec"]["search"]["repeats"] for s in made["studies"]] == [1] * 4
    run_all(api, lambda t: 0.5 + 0.02 * (t["candidate"] == "best") + t["seed"] % 5 / 5000 * (t["candidate"] == "best"))
    found = api.call("GET", f"/groups/{made['id']}").json()
    assert found["gain"]["seeds"] == 4
    assert found["gain"]["low"] > 0
    assert found["sentences"][0].startswith("Searching pays as a procedure: +2.")


def test_models_are_told_apart_by_name(api: Api, data_root: Path) -> None:
    made = grouped(api, models=[{"path": "tiny-bert"}, {"path": "./tiny-bert"}])
    assert [s["group"]["label"] for s in made["studies"]] == ["tiny-bert (1)", "tiny-bert (2)"]


def test_tasks_with_other_metrics_are_not_set_side_by_side(api: Api) -> None:
    task = make_study()["task"]
    made = grouped(api, tasks=[task, {**task, "metric": "f1"}])
    found = api.call("GET", f"/groups/{made['id']}").json()
    assert "different metrics: accuracy and f1" in found["reason"]
    ids = [s["id"] for s in made["studies"]]
    refused = api.call("GET", "/compare", params={"study": ids})
    assert refused.status_code == 409
    assert "different metrics" in refused.json()["detail"]
    assert api.call("GET", "/compare", params={"study": ids[:1]}).status_code == 200


def test_other_test_data_are_not_compared(api: Api) -> None:
    studies = [api.create(name=name) for name in ("a", "b")]
    for digit in "12":
        lease = api.lease("runner")
        assert lease is not None
        file = {"name": "test.jsonl", "sha256": digit * 64, "bytes": 10}
        split = {"read": 4, "dropped": 0, "used": 4, "origin": "4 examples", "files": [file]}
        inputs = {"splits": {"train": split, "test": split}}
        assert api.call("PUT", f"/leases/{lease['id']}/inputs", "worker", json=inputs).status_code == 200
        api.call("POST", f"/studies/{lease['trial']['study_id']}/pause")
    ids = [s["id"] for s in studies]
    refused = api.call("GET", "/compare", params={"study": ids})
    assert refused.status_code == 409
    assert "different test splits" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("changes", "pointer", "words"),
    [
        ({}, "#", "name exactly one list"),
        ({"budgets": BUDGETS, "models": [{"path": "a"}, {"path": "b"}]}, "#", "budgets and models are given"),
        ({"budgets": [{"lora_rank": 4}]}, "#/budgets", "2 to 32"),
        ({"budgets": {"lora_rank": 4}}, "#/budgets", "2 to 32"),
        ({"budgets": [{"lora_rank": 4}, {"lora_rank": 0}]}, "#/budgets/1/lora_rank", "greater than"),
        ({"budgets": [{"lora_rank": 4}, "8"]}, "#/budgets/1", "valid dictionary"),
        ({"models": [{"path": "tiny-bert"}, {"path": "no-such"}]}, "#/models/1", "no-such"),
        ({"budgets": BUDGETS, "training": {"epochs": 0}}, "#/training/epochs", "greater than"),
        ({"search": {"repeats": 33}}, "#/search/repeats", "1 to 32"),
        ({"search": {"repeats": "3"}}, "#/search/repeats", "1 to 32"),
    ],
)
def test_what_is_no_group_is_refused_at_its_place(api: Api, changes: Any, pointer: str, words: str) -> None:
    search = changes.pop("search", {})
    body = body_of(**changes)
    body["search"] |= search
    response = post(api, "/groups", json=body)
    assert response.status_code == 422, response.text
    faults = {f["pointer"]: f["detail"] for f in response.json()["errors"]}
    assert any(place.startswith(pointer) and words in said for place, said in faults.items()), faults
    assert api.call("GET", "/studies").json()["items"] == []


def test_a_section_beside_its_list_is_refused(api: Api) -> None:
    body = {**body_of(budgets=BUDGETS), "budget": {"lora_rank": 2}}
    (fault,) = post(api, "/groups", json=body).json()["errors"]
    assert fault["pointer"] == "#/budget"


def test_a_quota_takes_all_studies_or_none(api: Api) -> None:
    (team,) = api.call("GET", "/teams").json()["items"]
    assert api.call("PATCH", f"/teams/{team['id']}", "admin", json={"max_studies": 2}).status_code == 200
    assert post(api, "/groups", json=body_of(budgets=BUDGETS)).status_code == 409
    assert api.call("GET", "/studies").json()["items"] == []


def test_one_study_does_not_take_repeats(api: Api) -> None:
    (fault,) = post(api, "/studies", json=make_study(search={"repeats": 3})).json()["errors"]
    assert fault["pointer"] == "#/search/repeats"
    assert "/groups" in fault["detail"]


@pytest.mark.parametrize("name", ["a" * 201, "a" * 140 + "\ud800", "", 7, None])
def test_a_groups_whole_name_is_checked(api: Api, name: Any) -> None:
    body = {**body_of(budgets=BUDGETS), "name": name}
    content = json.dumps(body)
    headers = {"Content-Type": "application/json"}
    response = api.call("POST", "/groups", content=content, headers=headers)
    assert response.status_code == 422, response.text
    assert api.call("GET", "/studies").json()["items"] == []


def test_without_the_guideline_nothing_is_said_of_it(api: Api) -> None:
    made = grouped(api, budgets=BUDGETS, compare={**COMPARE, "predictors": ["alignment"]})
    run_all(api, by_budget(0.02))
    found = api.call("GET", f"/groups/{made['id']}").json()
    assert found["pays_from"] is None
    assert found["sentences"] == [
        "Nothing is said about searching: not every study confirms the guideline (compare.predictors, seeds)."
    ]
    login(api)
    ids = [s["id"] for s in made["studies"]]
    assert {verdict for _, verdict in api.http.get("/headlines", params={"study": ids}).json().values()} == {""}


def test_deleting_a_study_narrows_no_interval(api: Api) -> None:
    made = grouped(api, budgets=BUDGETS)
    run_all(api, by_budget(0.02))
    assert api.call("DELETE", f"/studies/{made['studies'][0]['id']}").status_code == 204
    found = api.call("GET", f"/groups/{made['id']}").json()
    assert [s["gain"]["confidence"] for s in found["studies"]] == pytest.approx([1 - 0.05 / 3] * 2)


def test_a_group_that_is_gone_is_not_found(api: Api) -> None:
    made = grouped(api, budgets=BUDGETS)
    for study in made["studies"]:
        assert api.call("DELETE", f"/studies/{study['id']}").status_code == 204
    assert api.call("GET", f"/groups/{made['id']}").status_code == 404
    assert api.call("GET", f"/groups/{made['id']}/report").status_code == 404


def test_reports_hold_every_study(api: Api) -> None:
    made = grouped(api, budgets=BUDGETS, name="by <b>budget</b>")
    run_all(api, by_budget(0.02))
    page = api.call("GET", f"/groups/{made['id']}/report", params={"format": "html"}).text
    assert "by &lt;b&gt;budget&lt;/b&gt;" in page
    assert page.count("<!doctype html>") == 1
    assert page.count("To repeat it") == 3
    assert "<script" not in page
    text = api.call("GET", f"/groups/{made['id']}/report", params={"format": "md"}).text
    assert text.count("## To repeat it") == 3
    found = json.loads(api.call("GET", f"/groups/{made['id']}/report", params={"format": "json"}).text)
    assert [s["label"] for s in found["studies"]] == ["LoRA rank 2", "LoRA rank 4", "LoRA rank 8"]
    again = post(api, "/studies", json=found["studies"][0]["study"])
    assert again.status_code == 201, again.text


def test_pages_show_group_and_record(api: Api) -> None:
    made = grouped(api, budgets=BUDGETS)
    run_all(api, by_budget(0.02))
    login(api)
    page = api.http.get(f"/groups/{made['id']}").text
    assert "The smallest budget at which searching beat the guideline" in page
    picture = api.http.get(f"/groups/{made['id']}/picture.svg")
    assert picture.headers["content-type"].startswith("image/svg+xml")
    assert "LoRA rank 8" in picture.text
    assert f"/groups/{made['id']}" in api.http.get(f"/studies/{made['studies'][0]['id']}").text
    assert "guideline" in api.http.get("/predictors").text
    assert api.http.get("/groups/none").status_code == 404


def test_the_record_counts_verdicts_and_pools_regrets(api: Api) -> None:
    assert api.call("GET", "/predictors/record").json() == {"items": []}
    grouped(api, budgets=BUDGETS)
    run_all(api, by_budget(0.02))
    (record,) = api.call("GET", "/predictors/record").json()["items"]
    assert (record["predictor"], record["metric"], record["studies"]) == ("guideline", "accuracy", 3)
    assert record["worse"] == 2
    assert record["better"] + record["same"] + record["equal"] + record["undecided"] == 1
    pooled = record["regret"]
    assert pooled["studies"] == 3
    assert pooled["low"] < pooled["mean"] < pooled["high"]
    assert 0.0 < pooled["mean"] < 0.16


def test_the_record_is_of_ones_own_team(api: Api) -> None:
    grouped(api, budgets=BUDGETS)
    run_all(api, by_budget(0.02))
    assert api.call("GET", "/predictors/record", "viewer", "other").json() == {"items": []}


def test_files_describe_groups_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "group.yaml"
    file.write_text(
        "name: x\nmodel: {path: a}\ntask: {kind: sequence_classification, dataset: {path: json}}\n"
        "budgets:\n  - {lora_rank: 2}\n  - {lora_rank: two}\n"
    )
    done = CliRunner().invoke(app, ["validate", str(file)])
    assert done.exit_code != 0
    with pytest.raises(InvalidStudy) as caught:
        StudyFile(file).check()
    assert [(f.pointer, StudyFile(file).line(f.pointer)) for f in caught.value.faults] == [("#/budgets/1/lora_rank", 6)]


def test_a_study_is_no_group() -> None:
    assert not is_group(make_study())
    assert not is_group([])
    with pytest.raises(InvalidStudy):
        expand([])


def test_more_seeds_settle_an_open_question(api: Api) -> None:
    study = api.create(search={"trials": 2, "sampler": "random"}, compare=COMPARE)
    noisy = {}

    def value(trial: dict[str, Any]) -> float:
        best = trial["candidate"] == "best"
        noisy.setdefault(trial["seed"], len(noisy))
        return 0.5 + 0.02 * best + 0.03 * best * (noisy[trial["seed"]] % 3 == 0)

    run_all(api, value)
    assert study_of(api, study)["state"] == "completed"
    before = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert before["predictors"][0]["verdict_kind"] == "undecided"
    few = api.call("PATCH", f"/studies/{study['id']}", json={"seeds": 3})
    assert few.status_code == 422
    assert "3 seeds already" in few.json()["errors"][0]["detail"]
    changed = api.call("PATCH", f"/studies/{study['id']}", json={"seeds": 12})
    assert changed.status_code == 200, changed.text
    assert changed.json()["state"] == "running"
    run_all(api, value)
    after = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert after["state"] == "completed"
    best = next(c for c in after["candidates"] if c["name"] == "best")
    assert 3 < best["finished"] <= 12
    assert after["predictors"][0]["verdict_kind"] == "better"
    # Decided at the confidence of its own looks; one with wider intervals must not ask again.
    decided = api.call("PATCH", f"/studies/{study['id']}", json={"seeds": 30})
    assert decided.status_code == 409
    assert study_of(api, study)["state"] == "completed"


def test_what_five_seeds_decided_is_not_asked_again(api: Api) -> None:
    study = api.create(search={"trials": 2, "sampler": "random"}, compare={**COMPARE, "seeds": 4})
    run_all(api, lambda t: 0.5 + (t["candidate"] == "best") * (0.02 + t["seed"] % 3 / 100))
    before = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert before["predictors"][0]["verdict_kind"] == "better"
    for body in ({"seeds": 12}, {"seeds": 12, "limits": {"hours": 5}}):
        assert api.call("PATCH", f"/studies/{study['id']}", json=body).status_code == 409
    assert study_of(api, study)["state"] == "completed"


def test_seeds_and_limits_are_changed_together(api: Api) -> None:
    study = api.create(search={"trials": 2, "sampler": "random"}, compare=COMPARE)
    order: dict[int, int] = {}

    def value(trial: dict[str, Any]) -> float:
        best = trial["candidate"] == "best"
        order.setdefault(trial["seed"], len(order))
        return 0.5 + 0.02 * best + 0.03 * best * (order[trial["seed"]] % 3 == 0)

    run_all(api, value)
    changed = api.call("PATCH", f"/studies/{study['id']}", json={"seeds": 9, "limits": {"hours": 5}})
    assert changed.status_code == 200, changed.text
    assert changed.json()["state"] == "running"
    assert changed.json()["confirmation"]["queued"] > 0


def test_a_study_without_confirmation_takes_no_seeds(api: Api) -> None:
    study = api.create()
    refused = api.call("PATCH", f"/studies/{study['id']}", json={"seeds": 5})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "#/seeds"
