"""Trials are enqueued, stopped and retried."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Api, FakeClock

from ..helpers import POINT, lease_of, post, study_of, trials_of

pytestmark = pytest.mark.usefixtures("in_order")


def test_an_enqueued_configuration_counts_as_a_trial(api: Api) -> None:
    study = api.create(search={"trials": 2, "concurrency": 1})
    made = post(api, f"/studies/{study['id']}/trials", json={"params": POINT})
    assert made.status_code == 201
    assert made.headers["location"] == f"/api/v1/trials/{made.json()['id']}"
    done = api.run_all(lambda t: 0.5)
    assert done[0]["params"] == POINT
    assert len(done) == 2
    full = post(api, f"/studies/{study['id']}/trials", json={"params": POINT})
    assert full.status_code == 409
    assert "extend it" in full.json()["detail"]


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"r1": 3}, "#/params/r1", "does not divide"),
        ({"r2": 7}, "#/params/r2", "divisors near it"),
        ({"r": 400}, "#/params/r", "over the budget"),
        ({"alpha": 0}, "#/params/alpha", "greater than 0"),
    ],
)
def test_an_impossible_configuration_is_rejected_with_a_remedy(
    api: Api, change: dict[str, Any], pointer: str, words: str
) -> None:
    study = api.create()
    response = post(api, f"/studies/{study['id']}/trials", json={"params": {**POINT, **change}})
    assert response.status_code == 422
    (fault,) = response.json()["errors"]
    assert fault["pointer"] == pointer
    assert words in fault["detail"]
    assert trials_of(api, study) == []


def test_stopping_one_trial_does_not_stop_the_study(api: Api) -> None:
    study = api.create(search={"trials": 3, "concurrency": 2})
    post(api, f"/studies/{study['id']}/trials", json={"params": POINT})
    queued = trials_of(api, study)[0]
    assert post(api, f"/trials/{queued['id']}/stop").json()["state"] == "cancelled"
    running = lease_of(api)
    assert post(api, f"/trials/{running['trial']['id']}/stop").json()["stop_reason"] == "cancelled"
    assert api.report(running, 0.3).json()["reason"] == "cancelled"
    assert api.finish(running, "cancelled", None).json() == {"trial_state": "cancelled"}
    assert post(api, f"/trials/{running['trial']['id']}/stop").status_code == 409
    assert len(api.run_all(lambda t: 0.5)) == 1
    assert study_of(api, study)["state"] == "completed"


def test_a_trial_that_was_stopped_is_not_queued_again_when_its_runner_dies(api: Api, clock: FakeClock) -> None:
    study = api.create(search={"trials": 1})
    running = lease_of(api)
    post(api, f"/trials/{running['trial']['id']}/stop")
    clock.advance(61)
    assert api.lease("other") is None
    assert trials_of(api, study)[0]["state"] == "cancelled"


def test_retrying_a_failed_trial_resumes_its_study(api: Api) -> None:
    study = api.create(search={"trials": 2, "retries": 0, "concurrency": 1})
    lease = lease_of(api)
    api.finish(lease, "failed", None, failure={"kind": "error", "message": "boom"})
    api.run_all(lambda t: 0.5)
    assert study_of(api, study)["state"] == "completed"
    retried = post(api, f"/trials/{lease['trial']['id']}/retry").json()
    assert (retried["state"], retried["failure"]) == ("queued", None)
    assert study_of(api, study)["state"] == "running"
    (again,) = api.run_all(lambda t: 0.9)
    assert again["id"] == lease["trial"]["id"]
    assert study_of(api, study)["state"] == "completed"
    assert post(api, f"/trials/{lease['trial']['id']}/retry").status_code == 409
