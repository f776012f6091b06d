"""Quotas and fair shares of teams."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.conftest import Api

from ..helpers import lease_of, post, study_of

pytestmark = pytest.mark.usefixtures("in_order")


def quota(api: Api, **values: Any) -> None:
    api.token("member")
    team = next(t for t in api.call("GET", "/teams", "admin").json()["items"] if t["name"] == "default")
    assert api.call("PATCH", f"/teams/{team['id']}", "admin", json=values).status_code == 200


def api_study(name: str) -> dict[str, Any]:
    from tests.conftest import make_study

    return make_study(name=name, search={"trials": 50, "concurrency": 50, "sampler": "random"})


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
    # Team b has twice the weight and gets six of nine slots. Within team a, priority decides.
    assert Counter(served) == {"b": 6, "a-high": 3}


def test_a_waiting_study_says_why(api: Api) -> None:
    study = api.create(resources={"cpus": 4, "gpus": 2})
    assert "none has asked for work" in study_of(api, study)["waiting_for"]
    assert api.lease("small", cpus=2, gpus=1) is None
    assert "a runner with 4 CPUs, 2 GPUs, in 2 processes; the largest of 1" in study_of(api, study)["waiting_for"]
    lease_of(api, "large", cpus=4, gpus=2, processes=2)
    assert study_of(api, study)["waiting_for"] is None
