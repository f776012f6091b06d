"""A host that fails trials which other hosts can run is quarantined, listed and released."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Api, FakeClock, make_study

ERROR = {"kind": "error", "message": "RuntimeError: CUDA error: unspecified launch failure"}


@pytest.fixture
def study(api: Api) -> dict[str, Any]:
    """A study that is known to work: a good host has finished a trial of it."""
    made = api.create(search={"trials": 40, "concurrency": 10, "retries": 9, "sampler": "random"})
    succeed(api, "good")
    return made


def succeed(api: Api, host: str) -> None:
    lease = api.lease(f"runner-{host}", host=host)
    assert lease is not None
    assert api.finish(lease).status_code == 200


def fail(api: Api, host: str, failure: dict[str, str] = ERROR) -> None:
    lease = api.lease(f"runner-{host}", host=host)
    assert lease is not None
    assert api.finish(lease, "failed", None, failure=failure).status_code == 200
    # Failures within 20 s count as one failure of the host.
    api.ctx.clock.advance(21)


def hosts(api: Api) -> dict[str, Any]:
    return {h["name"]: h for h in api.call("GET", "/hosts", "admin").json()["items"]}


def test_the_third_failure_in_a_row_quarantines_a_host(api: Api, study: dict[str, Any]) -> None:
    for _ in range(3):
        fail(api, "bad")
    assert api.lease("runner-bad", host="bad") is None
    assert api.lease("another-runner-there", host="bad") is None
    assert api.lease("runner-good", host="good") is not None
    shown = hosts(api)["bad"]
    assert shown["failures"] == 3
    assert shown["quarantined_at"] is not None
    assert "CUDA error" in shown["reason"]


def test_a_success_resets_a_hosts_failures(api: Api, study: dict[str, Any]) -> None:
    for _ in range(2):
        fail(api, "bad")
    succeed(api, "bad")
    for _ in range(2):
        fail(api, "bad")
    assert hosts(api)["bad"]["quarantined_at"] is None


def test_failures_of_studies_without_finished_trials_do_not_blame_hosts(api: Api) -> None:
    api.create(search={"trials": 9, "concurrency": 9, "retries": 9})
    for _ in range(5):
        fail(api, "bad")
    assert hosts(api) == {}


def test_failures_of_a_configuration_do_not_blame_hosts(api: Api, study: dict[str, Any]) -> None:
    for kind in ("out_of_memory", "diverged", "out_of_memory"):
        lease = api.lease("runner-bad", host="bad")
        assert lease is not None
        api.finish(lease, "infeasible", None, failure={"kind": kind, "message": "so"})
    assert hosts(api) == {}


def test_the_only_host_is_never_quarantined(api: Api, clock: FakeClock, study: dict[str, Any]) -> None:
    clock.advance(3600)
    for _ in range(4):
        fail(api, "bad")
    shown = hosts(api)["bad"]
    assert (shown["failures"], shown["quarantined_at"]) == (4, None)


def test_lost_runners_count_as_host_failures(api: Api, clock: FakeClock, study: dict[str, Any]) -> None:
    for _ in range(3):
        assert api.lease("runner-bad", host="bad") is not None
        clock.advance(61)
        # The good host asks for work, and the server then checks for expired leases.
        succeed(api, "good")
    assert hosts(api)["bad"]["quarantined_at"] is not None
    assert "nothing was heard of runner-bad" in hosts(api)["bad"]["reason"]


def test_an_admin_releases_a_quarantined_host(api: Api, study: dict[str, Any]) -> None:
    for _ in range(3):
        fail(api, "bad")
    assert api.call("POST", "/hosts/release", "member", json={"host": "bad"}).status_code == 403
    released = api.call("POST", "/hosts/release", "admin", json={"host": "bad"})
    assert released.status_code == 200
    assert (released.json()["failures"], released.json()["quarantined_at"]) == (0, None)
    assert api.lease("runner-bad", host="bad") is not None
    assert api.call("POST", "/hosts/release", "admin", json={"host": "nobody"}).status_code == 404
    actions = [entry["action"] for entry in api.call("GET", "/audit", "admin").json()["items"]]
    assert "host.release" in actions


def test_a_restarted_host_counts_as_one_failure(api: Api, clock: FakeClock, study: dict[str, Any]) -> None:
    held = [api.lease(f"gpu-{k}", host="eight-gpus") for k in range(8)]
    assert all(held)
    clock.advance(61)
    succeed(api, "good")
    assert hosts(api)["eight-gpus"]["failures"] == 1
    assert api.lease("gpu-0", host="eight-gpus") is not None


def test_runners_that_return_clear_their_host(api: Api, clock: FakeClock, study: dict[str, Any]) -> None:
    for _ in range(2):
        fail(api, "cut-off")
    held = api.lease("runner-cut-off", host="cut-off")
    assert held is not None
    clock.advance(61)
    assert api.call("GET", "/demand", "worker").status_code == 200
    assert hosts(api)["cut-off"]["quarantined_at"] is not None
    assert api.finish(held).status_code == 200
    assert hosts(api)["cut-off"]["quarantined_at"] is None


def test_workers_cannot_blame_another_teams_host(api: Api, study: dict[str, Any]) -> None:
    """A host name counts only within the team that reports it."""
    theirs = {"name": "theirs", "search": {"trials": 40, "concurrency": 10, "retries": 9, "sampler": "random"}}
    api.token("member", "evil")
    assert api.call("POST", "/studies", "member", "evil", json=make_study(**theirs)).status_code == 201

    def lease(host: str) -> str:
        found = api.call("POST", "/leases", "worker", "evil", json={"runner": f"evil-{host}", "host": host}).json()
        return str(found["leases"][0]["id"])

    done = {"state": "completed", "metrics": {"accuracy": 0.5}}
    assert api.call("PUT", f"/leases/{lease('own')}/result", "worker", "evil", json=done).status_code == 200
    for _ in range(3):
        failed = {"state": "failed", "failure": ERROR}
        assert api.call("PUT", f"/leases/{lease('good')}/result", "worker", "evil", json=failed).status_code == 200
        api.ctx.clock.advance(21)
    assert api.lease("runner-good", host="good") is not None
