"""Pause, resume, extend, retry, stop, enqueue, delete; limits; quotas and whose turn it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from service.context.context import Context
from service.db.checks import check
from service.server.maintenance import maintain
from service.studies.removal import purge_deleted
from tests.conftest import Api, FakeClock

POINT = {"r1": 2, "r2": 4, "r": 4, "alpha": 8, "learning_rate": 0.001}


@pytest.fixture(autouse=True)
def _in_order(ctx: Context) -> Any:
    """After every test the database's own promises hold: counts, leases, events without gaps."""
    yield
    assert check(ctx.db) == []


def study_of(api: Api, study: dict[str, Any]) -> dict[str, Any]:
    return api.call("GET", f"/studies/{study['id']}").json()


def trials_of(api: Api, study: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    return api.call("GET", f"/studies/{study['id']}/trials", params=query).json()["items"]


def post(api: Api, path: str, **kwargs: Any) -> Any:
    return api.call("POST", path, **kwargs)


def lease_of(api: Api, runner: str = "runner", **offer: Any) -> dict[str, Any]:
    lease = api.lease(runner, **offer)
    assert lease is not None
    return lease


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
    # A runner that knows of no pause calls it a cancellation; the trial goes back to the queue all the same.
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


def test_a_completed_study_is_extended_and_confirms_a_new_winner_only(api: Api) -> None:
    study = api.create(
        search={"trials": 2, "concurrency": 1}, compare={"seeds": 1, "learning_rate": "shared", "baselines": []}
    )
    values = {0: 0.6, 1: 0.7}
    first = api.run_all(lambda t: values.get(t["number"], 0.5))
    assert study_of(api, study)["state"] == "completed"

    # Nothing better is found: what was confirmed stands, nothing of it is run again.
    extended = api.call("PATCH", f"/studies/{study['id']}", json={"trials": 3}).json()
    assert (extended["state"], extended["phase"], extended["search"]["planned"]) == ("running", "search", 3)
    (more,) = api.run_all(lambda t: 0.1)
    assert more["number"] == len(first)
    assert study_of(api, study)["state"] == "completed"

    # Something better is found: the confirmation is made anew.
    api.call("PATCH", f"/studies/{study['id']}", json={"trials": 4})
    better = api.run_all(lambda t: 0.9)
    assert better[0]["phase"] == "search"
    assert {t["phase"] for t in better[1:]} == {"confirmation"}
    comparison = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert comparison["best_trial"]["number"] == better[0]["number"]
    assert comparison["candidates"][0]["title"] == f"best found (trial {better[0]['number']})"
    assert comparison["candidates"][0]["values"] == [0.9]
    assert len(comparison["candidates"][0]["values"]) == 1  # the superseded runs are not counted


def test_changes_while_running(api: Api) -> None:
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
    # Trials that run do not make an ETag stale for changes, only for reads.
    tag = changed.headers["etag"]
    assert api.call("GET", f"/studies/{study['id']}", headers={"If-None-Match": tag}).status_code == 200
    assert api.call("PATCH", f"/studies/{study['id']}", json={"priority": 7}, headers={"If-Match": tag}).is_success
    current = api.call("GET", f"/studies/{study['id']}").headers["etag"]
    assert api.call("GET", f"/studies/{study['id']}", headers={"If-None-Match": current}).status_code == 304
    # Lower concurrency touches nothing that runs.
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


def test_a_failed_trial_is_retried_and_its_study_with_it(api: Api) -> None:
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


def test_deletion_hides_a_study_now_and_purges_artifacts_later(api: Api, ctx: Context, clock: FakeClock) -> None:
    study = api.create(search={"trials": 2})
    clock.advance(1)
    other = api.create(name="other")
    lease = lease_of(api)
    assert lease["trial"]["study_id"] == study["id"]
    folder = Path(ctx.settings.artifacts_url) / "studies" / study["id"]
    folder.mkdir(parents=True)
    (folder / "adapter.bin").write_bytes(b"x" * 10)
    assert api.call("DELETE", f"/studies/{study['id']}").status_code == 204
    assert api.call("GET", f"/studies/{study['id']}").status_code == 404
    assert api.call("GET", f"/trials/{lease['trial']['id']}").status_code == 404
    assert [s["id"] for s in api.call("GET", "/studies").json()["items"]] == [other["id"]]
    assert api.report(lease, 0.5).status_code == 404  # its runner hears that there is no such trial
    assert api.call("DELETE", f"/studies/{study['id']}").status_code == 404
    assert purge_deleted(ctx) == []
    assert folder.exists()
    clock.advance(ctx.settings.purge_hours * 3600 + 1)
    maintain(ctx)
    assert purge_deleted(ctx) == [study["id"]]
    assert not folder.exists()
    assert purge_deleted(ctx) == []


def test_a_deleted_studys_trial_does_not_block_limits_of_others(api: Api, ctx: Context, clock: FakeClock) -> None:
    """Its lease is still held when the limits of another study are looked at."""
    gone = api.create(search={"trials": 2})
    assert lease_of(api, "first")["trial"]["study_id"] == gone["id"]
    limited = api.create(search={"trials": 2}, limits={"hours": 0.01})
    assert lease_of(api, "second")["trial"]["study_id"] == limited["id"]
    assert api.call("DELETE", f"/studies/{gone['id']}").status_code == 204
    clock.advance(37)
    maintain(ctx)
    assert study_of(api, limited)["state"] == "failed"


def test_a_study_can_be_purged_at_once(api: Api, ctx: Context) -> None:
    study = api.create()
    folder = Path(ctx.settings.artifacts_url) / "studies" / study["id"]
    folder.mkdir(parents=True)
    assert api.call("DELETE", f"/studies/{study['id']}", params={"purge": True}).status_code == 204
    assert not folder.exists()


# Limits.


def test_a_deadline_ends_the_search_with_what_it_has(api: Api, ctx: Context, clock: FakeClock) -> None:
    study = api.create(search={"trials": 9, "concurrency": 2}, limits={"hours": 1})
    api.finish(lease_of(api), value=0.7)
    running = lease_of(api)
    for _ in range(60):
        clock.advance(55)
        api.report(running)
        maintain(ctx)
    assert study_of(api, study)["state"] == "running"
    clock.advance(305)
    api.report(running)
    maintain(ctx)
    ended = study_of(api, study)
    assert ended["state"] == "completed"
    assert "limits.hours (1) reached" in ended["reason"]
    assert api.report(running).json()["reason"] == "cancelled"
    assert api.finish(running, "cancelled", None).json() == {"trial_state": "cancelled"}
    assert api.lease() is None
    # A new name is no reason to search on; a later limit is.
    assert api.call("PATCH", f"/studies/{study['id']}", json={"name": "late"}).json()["state"] == "completed"
    assert api.call("PATCH", f"/studies/{study['id']}", json={"limits": {"hours": 9}}).json()["state"] == "running"
    assert api.lease() is not None


def test_a_deadline_without_any_result_fails_the_study(api: Api, ctx: Context, clock: FakeClock) -> None:
    study = api.create(limits={"hours": 0.01})
    lease_of(api)
    clock.advance(37)
    maintain(ctx)
    assert study_of(api, study)["state"] == "failed"


def test_gpu_hours_are_counted_over_attempts_that_are_over_and_that_run(
    api: Api, ctx: Context, clock: FakeClock
) -> None:
    study = api.create(
        search={"trials": 9, "concurrency": 1}, resources={"gpus": 2}, limits={"gpu_hours": 0.05}
    )  # 180 GPU seconds
    first = lease_of(api, gpus=2, processes=2)
    clock.advance(45)
    api.finish(first, value=0.5)
    assert study_of(api, study)["gpu_seconds"] == 90
    second = lease_of(api, gpus=2, processes=2)
    clock.advance(40)
    api.report(second)
    maintain(ctx)
    assert study_of(api, study)["state"] == "running"
    clock.advance(6)
    maintain(ctx)
    assert "limits.gpu_hours" in study_of(api, study)["reason"]
    api.finish(second, "cancelled", None)
    assert study_of(api, study)["gpu_seconds"] == 90 + 92


def test_a_trial_over_its_time_is_told_to_stop_and_is_infeasible(api: Api, clock: FakeClock) -> None:
    study = api.create(search={"trials": 2, "concurrency": 1}, limits={"trial_minutes": 1})
    lease = lease_of(api)
    clock.advance(55)
    assert api.report(lease, 0.2).json()["directive"] == "continue"
    clock.advance(6)
    assert api.report(lease).json()["reason"] == "timed_out"
    assert api.finish(lease, "cancelled", None).json() == {"trial_state": "infeasible"}
    failure = trials_of(api, study)[0]["failure"]
    assert failure["kind"] == "timed_out"
    assert "limits.trial_minutes (1)" in failure["message"]
    assert len(api.run_all(lambda t: 0.5)) == 1


def test_a_trial_that_ignores_its_time_limit_loses_its_lease(api: Api, ctx: Context, clock: FakeClock) -> None:
    study = api.create(search={"trials": 1}, limits={"trial_minutes": 1})
    lease = lease_of(api)
    for _ in range(3):
        clock.advance(41)
        api.report(lease, first_step=1)
        maintain(ctx)
    assert trials_of(api, study)[0]["state"] == "infeasible"
    assert api.report(lease).status_code == 409


def test_a_hung_trial_with_a_live_heartbeat_is_detected(api: Api, ctx: Context, clock: FakeClock) -> None:
    study = api.create(search={"trials": 1, "retries": 1}, limits={"stall_minutes": 2})
    first = lease_of(api)
    for k in range(4):  # slow, but its steps go on
        clock.advance(50)
        body = {"reports": [{"step": k, "metrics": {}}]}
        assert api.call("POST", f"/leases/{first['id']}/reports", "worker", json=body).status_code == 200
        maintain(ctx)
    for _ in range(3):  # from here on nothing but heartbeats
        clock.advance(50)
        api.report(first)
        maintain(ctx)
    assert trials_of(api, study)[0]["state"] == "queued"
    assert api.report(first).status_code == 409
    second = lease_of(api, "second")
    assert second["trial"]["id"] == first["trial"]["id"]
    for _ in range(3):
        clock.advance(50)
        api.report(second)
        maintain(ctx)
    found = trials_of(api, study)[0]
    assert (found["state"], found["failure"]["kind"]) == ("failed", "stalled")
    assert "no progress for limits.stall_minutes (2)" in found["failure"]["message"]


# Quotas and turns.


def quota(api: Api, **values: Any) -> None:
    api.token("member")
    team = next(t for t in api.call("GET", "/teams", "admin").json()["items"] if t["name"] == "default")
    assert api.call("PATCH", f"/teams/{team['id']}", "admin", json=values).status_code == 200


def test_the_quota_of_running_trials_is_enforced_and_explained(api: Api) -> None:
    first = api.create(search={"trials": 5, "concurrency": 5})
    quota(api, max_running_trials=2)
    held = [lease_of(api, f"r{k}") for k in range(2)]
    second = api.create(name="second")
    assert api.lease() is None
    (item,) = api.call("GET", "/demand", "worker").json()["items"]
    assert (item["cpus"], item["gpus"], item["slots"]) == (1.0, 0.0, 2)
    assert "runs 2 of 2 trials" in study_of(api, second)["waiting_for"]
    team = api.call("GET", "/teams").json()["items"][0]
    assert team["usage"]["running_trials"] == 2
    assert team["max_running_trials"] == 2
    api.finish(held[0])
    assert api.lease() is not None
    quota(api, max_running_trials=None)
    assert api.lease() is not None
    assert study_of(api, first)["search"]["running"] == 3 or study_of(api, second)["search"]["running"] > 0


def test_gpus_are_counted_in_fractions(api: Api) -> None:
    api.create(search={"trials": 9, "concurrency": 9}, resources={"gpus": 0.25})
    quota(api, max_gpus=0.5)
    for k in range(2):
        lease_of(api, f"r{k}", gpus=0.25)
    assert api.lease(gpus=0.25) is None


def test_the_quota_of_open_studies_is_enforced(api: Api) -> None:
    quota(api, max_studies=1)
    study = api.create()
    refused = api.call("POST", "/studies", json={**study["spec"]})
    assert refused.status_code == 409
    assert refused.json()["type"] == "urn:cdka:problem:quota-exceeded"
    assert "1 of 1 studies" in refused.json()["detail"]
    post(api, f"/studies/{study['id']}/cancel")
    api.create()


def test_storage_is_counted_and_limited(api: Api) -> None:
    study = api.create(search={"trials": 1})
    api.finish(lease_of(api), artifact="/a/adapter", resources={"artifact_bytes": 1000})
    assert study_of(api, study)["storage_bytes"] == 1000
    quota(api, max_storage_bytes=1000)
    refused = api.call("POST", "/studies", json=study["spec"])
    assert "keeps 1,000 of 1,000 bytes" in refused.json()["detail"]


def test_teams_share_by_weight_and_a_studys_priority_counts_within_its_team(api: Api) -> None:
    for team, name, priority in (("a", "a-low", 0), ("a", "a-high", 5), ("b", "b", 0)):
        api.token("member", team)
        study = {**api_study(name), "priority": priority}
        assert api.call("POST", "/studies", "member", team, json=study).status_code == 201
    heavy = next(t for t in api.call("GET", "/teams", "admin").json()["items"] if t["name"] == "b")
    api.call("PATCH", f"/teams/{heavy['id']}", "admin", json={"weight": 2})
    served = []
    for k in range(9):
        response = api.call("POST", "/leases", "admin", json={"runner": f"r{k}"})
        served.append(response.json()["leases"][0]["trial"]["study"]["name"])
    # Of nine slots the team of twice the weight holds six; within the other, priority decides.
    assert Counter(served) == {"b": 6, "a-high": 3}


def api_study(name: str) -> dict[str, Any]:
    from tests.conftest import make_study

    return make_study(name=name, search={"trials": 50, "concurrency": 50, "sampler": "random"})


def test_a_waiting_study_says_why(api: Api) -> None:
    study = api.create(resources={"cpus": 4, "gpus": 2})
    assert "none has asked for work" in study_of(api, study)["waiting_for"]
    assert api.lease("small", cpus=2, gpus=1) is None
    assert "a runner with 4 CPUs, 2 GPUs, in 2 processes; the largest of 1" in study_of(api, study)["waiting_for"]
    lease_of(api, "large", cpus=4, gpus=2, processes=2)
    assert study_of(api, study)["waiting_for"] is None


def test_a_space_that_is_used_up_ends_the_search(api: Api) -> None:
    space = {"r1": 2, "r2": {"choices": [2, 4]}, "alpha": {"choices": [8, 16]}, "learning_rate": 0.001}
    study = api.create(search={"trials": 50, "sampler": "random", "concurrency": 3}, search_space=space)
    done = api.run_all(lambda t: 0.5)
    assert len({tuple(t["params"].items()) for t in done}) == len(done) < 50
    read = study_of(api, study)
    assert (read["state"], read["search"]["planned"]) == ("completed", len(done))
    renamed = api.call("PATCH", f"/studies/{study['id']}", json={"name": "used up"}).json()
    assert (renamed["state"], renamed["search"]["planned"]) == ("completed", len(done))


def test_two_objectives_have_a_front(api: Api) -> None:
    objectives = [
        {"metric": "accuracy", "direction": "maximize"},
        {"metric": "parameters", "direction": "minimize"},
    ]
    study = api.create(
        objectives=objectives,
        search={"trials": 12, "sampler": "nsga2", "pruner": "median"},
        budget={"configuration": {"r1": 2, "r2": 4, "r": 4}, "min_fill": 0.2},
        search_space={"r1": {"choices": [1, 2, 4]}, "r2": {"choices": [1, 2, 4, 8]}, "r": {"low": 1, "high": 8}},
    )
    done = api.run_all(lambda t: 0.5 + 0.01 * (t["number"] % 3))
    assert len(done) == 12
    front = api.call("GET", f"/studies/{study['id']}/front").json()
    assert front["objectives"] == objectives
    pairs = [(t["metrics"]["accuracy"], t["metrics"]["parameters"]) for t in trials_of(api, study)]
    expected = {p for p in pairs if not any(q[0] >= p[0] and q[1] <= p[1] and q != p for q in pairs)}
    assert {(t["metrics"]["accuracy"], t["metrics"]["parameters"]) for t in front["trials"]} == expected
