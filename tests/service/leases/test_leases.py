"""Leases: exact counts, fencing, expiry, and what every kind of result does."""

from __future__ import annotations

from typing import Any

import pytest

from service.context.context import Context
from service.db.trials import Trials
from service.leases.outcomes import MOST_LOSSES
from tests.conftest import Api, FakeClock


def trial(api: Api, lease: dict[str, Any]) -> dict[str, Any]:
    return api.call("GET", f"/trials/{lease['trial']['id']}").json()


def study_state(api: Api, study: dict[str, Any]) -> str:
    return api.call("GET", f"/studies/{study['id']}").json()["state"]


def test_a_study_runs_exactly_its_trials_and_completes(api: Api) -> None:
    study = api.create(search={"trials": 5})
    done = api.run_all(lambda t: 0.5)
    assert [t["number"] for t in done] == [0, 1, 2, 3, 4]
    assert {t["seed"] for t in done} == {0}
    assert study_state(api, study) == "completed"
    assert api.call("GET", "/demand", "worker").json() == {"items": []}


def test_concurrency_is_never_exceeded(api: Api) -> None:
    api.create(search={"trials": 5, "concurrency": 2})
    first, second = api.lease(), api.lease()
    assert first is not None
    assert second is not None
    assert api.lease() is None
    assert api.finish(first).status_code == 200
    assert api.lease() is not None
    assert api.lease() is None


def test_an_expired_lease_is_fenced_once_its_trial_is_leased_again(api: Api, clock: FakeClock) -> None:
    api.create(search={"trials": 1})
    first = api.lease("one")
    assert first is not None
    clock.advance(61)
    second = api.lease("two")
    assert second is not None
    assert second["trial"]["id"] == first["trial"]["id"]
    assert second["id"] != first["id"]
    before = trial(api, second)
    late = api.report(first, 0.9)
    assert late.status_code == 409
    assert late.json()["type"] == "urn:cdka:problem:lease-lost"
    assert api.finish(first, value=0.9).status_code == 409
    assert trial(api, second) == before
    assert api.call("GET", f"/trials/{before['id']}/metrics").json()["items"] == []
    assert api.finish(second, value=0.4).status_code == 200
    assert trial(api, second)["metrics"] == {"accuracy": 0.4}


def test_an_expired_lease_can_be_renewed_until_another_takes_the_trial(api: Api, clock: FakeClock) -> None:
    api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    clock.advance(61)
    api.call("GET", "/demand", "worker")  # the server notices the expiry
    assert trial(api, lease)["state"] == "queued"
    assert api.report(lease, 0.5).status_code == 200
    assert trial(api, lease)["state"] == "running"
    assert api.finish(lease).status_code == 200


def test_heartbeats_keep_a_lease(api: Api, clock: FakeClock) -> None:
    api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    for _ in range(5):
        clock.advance(50)
        assert api.report(lease).json()["directive"] == "continue"
        assert api.lease("other") is None
    assert lease["heartbeat_seconds"] == 15


def test_a_server_outage_expires_no_lease(api: Api, ctx: Context, clock: FakeClock) -> None:
    api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    clock.advance(120)
    ctx.forgive_outage()  # as at start-up
    assert api.lease("other") is None
    assert api.report(lease).status_code == 200
    clock.advance(59)
    assert api.lease("other") is None


def test_the_same_result_is_accepted_twice_and_another_one_is_rejected(api: Api) -> None:
    api.create(search={"trials": 2})
    lease = api.lease()
    assert lease is not None
    assert api.finish(lease, value=0.7).status_code == 200
    assert api.finish(lease, value=0.7).status_code == 200
    assert api.finish(lease, value=0.8).status_code == 409
    assert trial(api, lease)["metrics"] == {"accuracy": 0.7}


def test_a_body_that_reports_a_value_twice_is_rejected_as_a_whole(api: Api) -> None:
    """Otherwise the metrics and the pruner's curve could keep different values."""
    api.create()
    lease = api.lease()
    assert lease is not None
    reports = [{"step": 1, "metrics": {"accuracy": value}} for value in (0.3, 0.9)]
    answer = api.call("POST", f"/leases/{lease['id']}/reports", "worker", json={"reports": reports})
    assert answer.status_code == 422
    assert "accuracy of step 1 is reported twice in one request" in answer.text
    assert api.call("GET", f"/trials/{lease['trial']['id']}/metrics").json()["items"] == []
    two = [{"step": 1, "metrics": {"accuracy": 0.3}}, {"step": 1, "metrics": {"loss": 0.9}}]
    assert api.call("POST", f"/leases/{lease['id']}/reports", "worker", json={"reports": two}).status_code == 200
    with api.ctx.db.read() as session:
        assert Trials(session).get(lease["trial"]["id"]).curve == [0.3]


def test_reports_repeated_by_a_retry_change_nothing(api: Api) -> None:
    api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    api.report(lease, 0.1, 0.2)
    api.report(lease, 0.9, 0.9, 0.3)  # steps 1 and 2 are stored already
    items = api.call("GET", f"/trials/{lease['trial']['id']}/metrics").json()["items"]
    assert [(m["step"], m["value"]) for m in items] == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_asha_stops_a_bad_trial_and_repeats_the_directive(api: Api) -> None:
    api.create(search={"trials": 4, "pruner": "asha", "pruner_options": {"promotion": False}})
    good = api.lease()
    assert good is not None
    assert api.report(good, 0.9).json()["directive"] == "continue"
    bad = api.lease()
    assert bad is not None
    for _ in range(2):
        said = api.report(bad, 0.1).json()
        assert (said["directive"], said["reason"]) == ("stop", "pruned")
    assert api.finish(bad, "pruned", 0.1).json() == {"trial_state": "pruned"}


def test_errors_use_the_users_retries_and_then_fail_the_trial(api: Api) -> None:
    study = api.create(search={"trials": 1, "retries": 1})
    failure = {"kind": "error", "message": "boom"}
    for expected in ("queued", "failed"):
        lease = api.lease()
        assert lease is not None
        assert api.finish(lease, "failed", None, failure=failure).json() == {"trial_state": expected}
    assert trial(api, lease)["failure"] == failure
    assert trial(api, lease)["attempts"] == 2
    read = api.call("GET", f"/studies/{study['id']}").json()
    assert read["state"] == "failed"
    assert "no search trial finished" in read["reason"]


@pytest.mark.parametrize("kind", ["out_of_memory", "diverged"])
def test_infeasible_trials_are_never_run_again(api: Api, kind: str) -> None:
    study = api.create(search={"trials": 2, "retries": 5})
    lease = api.lease()
    assert lease is not None
    api.finish(lease, "infeasible", None, failure={"kind": kind, "message": "no"})
    assert trial(api, lease)["state"] == "infeasible"
    assert [t["number"] for t in api.run_all(lambda t: 0.5)] == [1]
    assert study_state(api, study) == "completed"


def test_a_rejected_model_or_dataset_fails_the_study_with_the_reason(api: Api) -> None:
    study = api.create(search={"trials": 4})
    lease = api.lease()
    assert lease is not None
    api.finish(lease, "failed", None, failure={"kind": "rejected", "message": "the data has no labels"})
    read = api.call("GET", f"/studies/{study['id']}").json()
    assert read["state"] == "failed"
    assert "the data has no labels" in read["reason"]
    assert api.lease() is None


def test_five_losses_in_a_row_fail_a_trial_without_using_retries(api: Api, clock: FakeClock) -> None:
    api.create(search={"trials": 1, "retries": 0})
    for k in range(MOST_LOSSES - 1):
        assert api.lease(f"runner-{k}") is not None
        clock.advance(61)
    last = api.lease("last")
    assert last is not None
    clock.advance(61)
    assert api.lease("none") is None
    found = trial(api, last)
    assert found["state"] == "failed"
    assert found["failure"]["kind"] == "lost"
    assert "5 times without a new checkpoint" in found["failure"]["message"]


def test_a_new_checkpoint_resets_losses_and_is_passed_to_the_next_attempt(api: Api, clock: FakeClock) -> None:
    api.create(search={"trials": 1})
    for k in range(MOST_LOSSES + 2):
        lease = api.lease(f"runner-{k}")
        assert lease is not None
        body = {"reports": [], "checkpoint": f"file:///checkpoint-{k}"}
        assert api.call("POST", f"/leases/{lease['id']}/reports", "worker", json=body).status_code == 200
        clock.advance(61)
    lease = api.lease("last")
    assert lease is not None
    assert lease["trial"]["checkpoint"] == f"file:///checkpoint-{MOST_LOSSES + 1}"


def test_a_released_trial_is_queued_again_without_using_retries(api: Api) -> None:
    api.create(search={"trials": 1, "retries": 0})
    for _ in range(MOST_LOSSES + 2):
        lease = api.lease()
        assert lease is not None
        assert api.finish(lease, "released", None).json() == {"trial_state": "queued"}
    assert api.lease() is not None


def test_cancelling_stops_running_and_queued_trials(api: Api) -> None:
    study = api.create(search={"trials": 4})
    lease = api.lease()
    assert lease is not None
    cancelled = api.call("POST", f"/studies/{study['id']}/cancel").json()
    assert cancelled["state"] == "cancelled"
    said = api.report(lease, 0.5).json()
    assert (said["directive"], said["reason"]) == ("stop", "cancelled")
    assert api.finish(lease, "cancelled", None).json() == {"trial_state": "cancelled"}
    assert api.lease() is None
    again = api.call("POST", f"/studies/{study['id']}/cancel")
    assert again.status_code == 409
    assert "that state is final" in again.json()["detail"]


def test_a_cancelled_study_ends_even_if_its_runner_died(api: Api, clock: FakeClock) -> None:
    study = api.create(search={"trials": 4})
    lease = api.lease()
    assert lease is not None
    api.call("POST", f"/studies/{study['id']}/cancel")
    clock.advance(61)
    assert api.lease() is None
    assert trial(api, lease)["state"] == "cancelled"


def test_a_completed_trial_must_report_its_objective(api: Api) -> None:
    api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    response = api.finish(lease, "completed", None)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "#/metrics"
    assert api.finish(lease, "failed", None).status_code == 422  # a failed result needs a failure
    raw = '{"state": "completed", "metrics": {"accuracy": NaN}}'
    path = f"/leases/{lease['id']}/result"
    assert api.call("PUT", path, "worker", content=raw, headers={"content-type": "application/json"}).status_code == 422
    assert trial(api, lease)["state"] == "running"


def test_a_trial_goes_only_to_a_runner_with_its_resources(api: Api) -> None:
    api.create(search={"trials": 2}, resources={"cpus": 2, "gpus": 0.5})
    assert api.lease(cpus=1) is None
    assert api.lease(cpus=2) is None
    (item,) = api.call("GET", "/demand", "worker").json()["items"]
    assert (item["cpus"], item["gpus"], item["slots"]) == (2.0, 0.5, 2)
    assert api.lease(cpus=2, gpus=1) is not None


@pytest.mark.parametrize(
    ("asked", "less", "enough"),
    [
        ({"memory_gib": 24}, {"memory_gib": 16}, {"memory_gib": 32}),
        ({"accelerator_type": "H100"}, {"accelerator_type": "A100"}, {"accelerator_type": "H100"}),
        ({"custom": {"nvme": 1}}, {"custom": {"nvme": 0.5}}, {"custom": {"nvme": 2, "other": 1}}),
        ({"gpus": 2}, {"gpus": 2}, {"gpus": 2, "processes": 2}),
        ({"processes": 2, "cpus": 2}, {"cpus": 2}, {"cpus": 2, "processes": 2}),
    ],
)
def test_every_kind_of_resource_is_matched(api: Api, asked: dict[str, Any], less: Any, enough: Any) -> None:
    study = api.create(search={"trials": 2, "concurrency": 2}, resources=asked)
    assert api.lease("none") is None
    assert api.lease("less", **less) is None
    assert "a runner with" in api.call("GET", f"/studies/{study['id']}").json()["waiting_for"]
    (item,) = api.call("GET", "/demand", "worker").json()["items"]
    shape = {k: v for k, v in item.items() if k != "slots"}
    assert api.lease("exact", **shape) is not None
    assert api.lease("enough", **enough) is not None
    shown = {w["name"]: w for w in api.call("GET", "/workers", "admin").json()["items"]}
    assert {k: shown["exact"][k] for k in shape} == shape


def test_warm_runners_prefer_their_model_without_starving_others(api: Api) -> None:
    api.create(name="old", search={"trials": 9, "concurrency": 9})
    api.create(name="new", search={"trials": 9, "concurrency": 9}, model={"path": "tiny-bert", "revision": "v2"})
    warm = ["tiny-bert@v2"]
    served = [api.lease(warm=warm)["trial"]["study"]["name"] for _ in range(4)]  # type: ignore[index]
    # Each study gets a first trial; after that, the study with the warm model is preferred.
    assert served == ["new", "old", "new", "new"]


def test_an_unknown_lease_is_not_found(api: Api) -> None:
    assert api.call("POST", "/leases/nope/reports", "worker", json={}).status_code == 404
    assert api.call("PUT", "/leases/nope/result", "worker", json={"state": "released"}).status_code == 404


def test_an_attempt_without_a_checkpoint_clears_earlier_reports(api: Api, clock: FakeClock) -> None:
    """The reports of a dead attempt must neither mix with the next attempt's values nor stop it."""
    api.create(search={"trials": 3, "pruner": "asha", "pruner_options": {"promotion": False}})
    good = api.lease("good")
    assert good is not None
    api.report(good, 0.9)
    first = api.lease("first")
    assert first is not None
    assert api.report(first, 0.1, 0.2).json()["reason"] == "pruned"
    clock.advance(50)
    api.report(good)
    clock.advance(20)
    second = api.lease("second")
    assert second is not None
    assert second["trial"]["id"] == first["trial"]["id"]
    assert api.report(second).json()["directive"] == "continue"
    assert api.report(second, 0.95).json()["directive"] == "continue"
    items = api.call("GET", f"/trials/{first['trial']['id']}/metrics").json()["items"]
    assert [(m["step"], m["value"]) for m in items] == [(1, 0.95)]
