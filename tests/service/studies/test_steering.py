"""Studies are paused, resumed, extended, changed and cancelled."""

from __future__ import annotations

import pytest

from tests.conftest import Api

from ..helpers import lease_of, post, study_of

pytestmark = pytest.mark.usefixtures("in_order")


def test_a_paused_study_drains_and_completes_after_resuming(api: Api) -> None:
    study = api.create(search={"trials": 3})
    running = lease_of(api)
    paused = post(api, f"/studies/{study['id']}/pause").json()
    assert paused["state"] == "paused"
    assert "go on to their end" in paused["reason"]
    assert api.lease("other") is None
    assert api.report(running, 0.4).json()["directive"] == "continue"
    assert api.finish(running).json() == {"trial_state": "completed"}
    assert post(api, f"/studies/{study['id']}/resume").json()["state"] == "running"
    assert [t["number"] for t in api.run_all(lambda t: 0.5)] == [1, 2]
    assert study_of(api, study)["state"] == "completed"


def test_pausing_now_queues_running_trials_with_their_checkpoints(api: Api) -> None:
    study = api.create(search={"trials": 1, "retries": 0})
    first = lease_of(api)
    body = {"reports": [], "checkpoint": "file:///checkpoint-1"}
    api.call("POST", f"/leases/{first['id']}/reports", "worker", json=body)
    post(api, f"/studies/{study['id']}/pause", params={"drain": False})
    said = api.report(first, 0.5).json()
    assert (said["directive"], said["reason"]) == ("stop", "paused")
    # A runner that does not know pauses reports a cancellation. The trial is queued again nevertheless.
    assert api.finish(first, "cancelled", None).json() == {"trial_state": "queued"}
    assert api.lease("other") is None
    post(api, f"/studies/{study['id']}/resume")
    again = lease_of(api, "other")
    assert again["trial"]["id"] == first["trial"]["id"]
    assert again["trial"]["checkpoint"] == "file:///checkpoint-1"
    assert api.finish(again).status_code == 200
    assert study_of(api, study)["state"] == "completed"


def test_resuming_cancels_a_pending_stop(api: Api) -> None:
    study = api.create(search={"trials": 1})
    lease = lease_of(api)
    post(api, f"/studies/{study['id']}/pause", params={"drain": False})
    post(api, f"/studies/{study['id']}/resume")
    assert api.report(lease, 0.5).json()["directive"] == "continue"


def test_a_study_whose_last_trials_ended_while_it_was_paused_completes_when_resumed(api: Api) -> None:
    study = api.create(search={"trials": 1})
    lease = lease_of(api)
    post(api, f"/studies/{study['id']}/pause")
    api.finish(lease)
    assert study_of(api, study)["state"] == "paused"
    assert post(api, f"/studies/{study['id']}/resume").json()["state"] == "completed"


def test_extending_a_completed_study_confirms_only_a_new_winner(api: Api) -> None:
    study = api.create(
        search={"trials": 2, "concurrency": 1}, compare={"seeds": 1, "learning_rate": "shared", "baselines": []}
    )
    values = {0: 0.6, 1: 0.7}
    first = api.run_all(lambda t: values.get(t["number"], 0.5))
    assert study_of(api, study)["state"] == "completed"

    # No better trial is found: the confirmation stays and is not run again.
    extended = api.call("PATCH", f"/studies/{study['id']}", json={"trials": 3}).json()
    assert (extended["state"], extended["phase"], extended["search"]["planned"]) == ("running", "search", 3)
    (more,) = api.run_all(lambda t: 0.1)
    assert more["number"] == len(first)
    assert study_of(api, study)["state"] == "completed"

    # A better trial is found: the confirmation is run again.
    api.call("PATCH", f"/studies/{study['id']}", json={"trials": 4})
    better = api.run_all(lambda t: 0.9)
    assert better[0]["phase"] == "search"
    assert {t["phase"] for t in better[1:]} == {"confirmation"}
    comparison = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert comparison["best_trial"]["number"] == better[0]["number"]
    assert comparison["candidates"][0]["title"] == f"best found (trial {better[0]['number']})"
    assert comparison["candidates"][0]["values"] == [0.9]
    assert len(comparison["candidates"][0]["values"]) == 1  # the superseded runs are not counted


def test_a_running_study_can_be_changed_unless_if_match_is_stale(api: Api) -> None:
    study = api.create(search={"trials": 4, "concurrency": 1})
    lease_of(api)
    assert api.lease() is None
    read = api.call("GET", f"/studies/{study['id']}")
    tag = read.headers["etag"]
    changed = api.call(
        "PATCH",
        f"/studies/{study['id']}",
        json={"name": "new", "concurrency": 2, "priority": 5},
        headers={"If-Match": tag},
    )
    assert changed.status_code == 200
    body = changed.json()
    assert (body["name"], body["spec"]["search"]["concurrency"], body["spec"]["priority"]) == ("new", 2, 5)
    assert body["revision"] == 1
    lease_of(api, "second")
    stale = api.call("PATCH", f"/studies/{study['id']}", json={"priority": 6}, headers={"If-Match": tag})
    assert stale.status_code == 412
    assert stale.json()["type"] == "urn:cdka:problem:changed"
    # Trial progress invalidates If-None-Match, but not If-Match.
    tag = changed.headers["etag"]
    assert api.call("GET", f"/studies/{study['id']}", headers={"If-None-Match": tag}).status_code == 200
    assert api.call("PATCH", f"/studies/{study['id']}", json={"priority": 7}, headers={"If-Match": tag}).is_success
    current = api.call("GET", f"/studies/{study['id']}").headers["etag"]
    assert api.call("GET", f"/studies/{study['id']}", headers={"If-None-Match": current}).status_code == 304
    # Lower concurrency does not stop running trials.
    api.call("PATCH", f"/studies/{study['id']}", json={"concurrency": 1})
    assert study_of(api, study)["search"]["running"] == 2
    assert api.lease("third") is None


def test_the_number_of_trials_can_be_lowered_only_to_the_existing_ones(api: Api) -> None:
    study = api.create(search={"trials": 9, "concurrency": 3})
    leases = [lease_of(api, f"r{k}") for k in range(3)]
    refused = api.call("PATCH", f"/studies/{study['id']}", json={"trials": 2})
    assert refused.status_code == 422
    assert "3 trials exist already" in refused.json()["errors"][0]["detail"]
    assert api.call("PATCH", f"/studies/{study['id']}", json={"trials": 3}).status_code == 200
    for lease in leases:
        api.finish(lease)
    assert study_of(api, study)["state"] == "completed"


def test_a_cancelled_study_can_only_be_renamed(api: Api) -> None:
    study = api.create()
    post(api, f"/studies/{study['id']}/cancel")
    assert api.call("PATCH", f"/studies/{study['id']}", json={"name": "old one"}).status_code == 200
    refused = api.call("PATCH", f"/studies/{study['id']}", json={"trials": 100})
    assert refused.status_code == 409
    for verb in ("pause", "resume", "cancel"):
        assert post(api, f"/studies/{study['id']}/{verb}").status_code == 409
