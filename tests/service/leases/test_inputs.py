"""A study's inputs: the first trial records its data and model, they are shown, and they must not change."""

from __future__ import annotations

from typing import Any

import pytest

from service.client import Client
from service.client.testing import AppTransport
from service.errors import InputsChanged
from service.schemas.specs import Inputs
from tests.conftest import Api, FakeClock

FILE = {"name": "train.jsonl", "sha256": "a" * 64, "bytes": 120}
SPLIT = {"read": 42, "dropped": 2, "used": 40, "origin": "42 examples; 2 rows left out", "files": [FILE]}
INPUTS: dict[str, Any] = {
    "splits": {"train": SPLIT, "test": {**SPLIT, "files": [{**FILE, "name": "test.jsonl"}]}},
    "classes": ["business", "sport"],
    "model_sha256": "b" * 64,
    "tokenizer_sha256": "c" * 64,
    "notes": ["initialised anew in every trial: classifier"],
}


def record(api: Api, lease: dict[str, Any], inputs: dict[str, Any], role: str = "worker") -> Any:
    return api.call("PUT", f"/leases/{lease['id']}/inputs", role, json=inputs)


def leased(api: Api) -> dict[str, Any]:
    lease = api.lease()
    assert lease is not None
    return lease


def test_the_first_trial_records_what_the_study_is_trained_on(api: Api) -> None:
    study = api.create()
    assert study["inputs"] is None
    first = leased(api)
    assert first["trial"]["inputs"] is None
    assert record(api, first, INPUTS).json()["inputs"] == INPUTS
    read = api.call("GET", f"/studies/{study['id']}").json()
    assert read["inputs"] == INPUTS
    assert leased(api)["trial"]["inputs"] == INPUTS
    events = api.call("GET", f"/studies/{study['id']}/events/log").json()["items"]
    assert [e["kind"] for e in events].count("study.inputs") == 1
    assert api.call("GET", f"/studies/{study['id']}/export?format=json").json()["inputs"] == INPUTS


def test_the_same_inputs_twice_are_recorded_once_and_notes_may_differ(api: Api) -> None:
    api.create()
    first, second = leased(api), leased(api)
    record(api, first, INPUTS)
    again = record(api, second, {**INPUTS, "notes": []})
    assert (again.status_code, again.json()["inputs"]) == (200, INPUTS)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"splits": {"train": {**SPLIT, "files": [{**FILE, "sha256": "d" * 64}]}}}, "train.jsonl has SHA-256 dddddd"),
        ({"splits": {"train": {**SPLIT, "used": 39}}}, "39 used; it had 42 rows read, 2 dropped, 40 used"),
        ({"splits": {"train": SPLIT}}, "there is no test split any more"),
        ({"classes": ["sport", "business"]}, "the classes or their order differ"),
        ({"model_sha256": "d" * 64}, "the base model's weights have SHA-256 dddddddddddd, they had bbbbbbbbbbbb"),
        ({"tokenizer_sha256": "d" * 64}, "the tokenizer differs"),
    ],
)
def test_changed_data_or_model_is_rejected_with_the_difference(api: Api, change: dict[str, Any], told: str) -> None:
    study = api.create()
    first, second = leased(api), leased(api)
    record(api, first, INPUTS)
    answer = record(api, second, {**INPUTS, **change})
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:cdka:problem:inputs-changed"
    assert told in answer.json()["detail"]
    assert "create a new study" in answer.json()["detail"]
    assert api.call("GET", f"/studies/{study['id']}").json()["inputs"] == INPUTS


def test_a_lost_lease_records_nothing(api: Api, clock: FakeClock) -> None:
    study = api.create(search={"trials": 1})
    first = leased(api)
    clock.advance(61)
    leased(api)
    answer = record(api, first, INPUTS)
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:cdka:problem:lease-lost")
    assert api.call("GET", f"/studies/{study['id']}").json()["inputs"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"splits": {"dev": SPLIT}},
        {"splits": {"train": {**SPLIT, "read": -1}}},
        {"splits": {}, "model_sha256": "not a hash"},
        {"splits": {}, "extra": 1},
        {},
    ],
)
def test_malformed_inputs_are_rejected(api: Api, wrong: dict[str, Any]) -> None:
    study = api.create()
    assert record(api, leased(api), wrong).status_code == 422
    assert api.call("GET", f"/studies/{study['id']}").json()["inputs"] is None


def test_the_sdk_raises_inputs_changed(api: Api) -> None:
    api.create()
    first, second = leased(api), leased(api)
    inputs = Inputs.model_validate(INPUTS)
    with Client("http://localhost", api.token("worker"), transport=AppTransport(api.http)) as client:
        assert client.record_inputs(first["id"], inputs) == inputs
        with pytest.raises(InputsChanged, match="the classes or their order differ"):
            client.record_inputs(second["id"], inputs.model_copy(update={"classes": None}))


def test_the_study_page_shows_rows_files_classes_and_notes(api: Api) -> None:
    study = api.create()
    api.http.post("/login", data={"token": api.token("member")})
    page = f"/studies/{study['id']}"
    assert 'id="inputs"' not in api.http.get(page).text
    classes = [f"<class {k}>" for k in range(25)]
    record(api, leased(api), {**INPUTS, "classes": classes})
    for text in (api.http.get(page).text, api.http.get(f"{page}/body").text):
        assert 'id="inputs"' in text
        for words in ("42 examples; 2 rows left out", "train.jsonl", "aaaaaaaaaaaa", "bbbbbbbbbbbb"):
            assert words in text
        assert "&lt;class 19&gt; and 5 more" in text
        assert "initialised anew in every trial: classifier" in text


def test_cdka_show_prints_rows_classes_and_notes(api: Api, command: Any) -> None:
    study = api.create()
    record(api, leased(api), INPUTS)
    said = " ".join(command("show", study["id"])[1].split())
    assert "train: 42 rows read, 2 dropped, 40 used (42 examples; 2 rows left out)" in said
    assert "classes: business, sport" in said
    assert "initialised anew in every trial: classifier" in said
