"""Limits of studies and trials are enforced."""

from __future__ import annotations

import pytest

from service.context.context import Context
from service.server.maintenance import maintain
from tests.conftest import Api, FakeClock

from ..helpers import lease_of, study_of, trials_of

pytestmark = pytest.mark.usefixtures("in_order")


def test_a_deadline_completes_a_study_that_has_results(api: Api, ctx: Context, clock: FakeClock) -> None:
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
    # Renaming does not resume the search; a higher limit does.
    assert api.call("PATCH", f"/studies/{study['id']}", json={"name": "late"}).json()["state"] == "completed"
    assert api.call("PATCH", f"/studies/{study['id']}", json={"limits": {"hours": 9}}).json()["state"] == "running"
    assert api.lease() is not None


def test_a_deadline_without_any_result_fails_the_study(api: Api, ctx: Context, clock: FakeClock) -> None:
    study = api.create(limits={"hours": 0.01})
    lease_of(api)
    clock.advance(37)
    maintain(ctx)
    assert study_of(api, study)["state"] == "failed"


def test_gpu_hours_count_finished_and_running_attempts(api: Api, ctx: Context, clock: FakeClock) -> None:
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


def test_a_trial_over_its_time_limit_is_stopped_as_infeasible(api: Api, clock: FakeClock) -> None:
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
    for k in range(4):  # slow, but it makes steps
        clock.advance(50)
        body = {"reports": [{"step": k, "metrics": {}}]}
        assert api.call("POST", f"/leases/{first['id']}/reports", "worker", json=body).status_code == 200
        maintain(ctx)
    for _ in range(3):  # from here on only heartbeats
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
