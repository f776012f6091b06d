"""Shorthands for API calls, shared by several suites."""

from __future__ import annotations

from typing import Any

from tests.conftest import Api

POINT = {"r1": 2, "r2": 4, "r": 4, "alpha": 8, "learning_rate": 0.001}


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


def login(api: Api, role: str = "member") -> None:
    """Log in to the dashboard."""
    api.http.post("/login", data={"token": api.token(role)})
