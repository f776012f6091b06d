"""Request ids, logs and metrics."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from service.server.logs import set_up_logging
from tests.conftest import Api, make_study


def post(api: Api, path: str, key: str, body: Any = None, role: str = "member") -> Any:
    return api.call("POST", path, role, json=body, headers={"Idempotency-Key": key})


def test_request_ids_are_in_answers_logs_and_the_audit_log(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "service.access"):
        answer = api.call("POST", "/studies", json=make_study(), headers={"X-Request-Id": "from-the-caller-1"})
    assert answer.headers["x-request-id"] == "from-the-caller-1"
    entry = api.call("GET", "/audit", params={"target": answer.json()["id"]}).json()["items"][0]
    assert (entry["action"], entry["request_id"]) == ("study.create", "from-the-caller-1")
    line = next(r for r in caplog.records if r.name == "service.access")
    assert (line.method, line.path, line.status) == ("POST", "/api/v1/studies", 201)  # type: ignore[attr-defined]
    odd = api.http.get("/healthz", headers={"X-Request-Id": "x" * 100})
    assert len(odd.headers["x-request-id"]) == 16


def test_logs_are_json_lines_without_secrets(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        set_up_logging("json", lambda: "request-7")
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # the test client's own log
        secret = api.call("POST", "/tokens", "admin", json={"name": "n", "role": "viewer"}).json()["token"]
        api.http.get(f"/api/v1/studies?token={secret}", headers={"Authorization": f"Bearer {secret}"})
        api.http.get("/api/v1/studies", headers={"Authorization": "Bearer cdka_wrong-but-looks-real"})
        api.http.post("/login", data={"token": secret}, follow_redirects=False)
    finally:
        root.handlers[:], root.level = before
    written = capsys.readouterr().err
    lines = [json.loads(line) for line in written.splitlines()]
    assert lines
    assert all({"time", "level", "logger", "message", "request_id"} <= line.keys() for line in lines)
    assert secret not in written
    assert "wrong-but-looks-real" not in written


def test_metrics_cover_queue_trials_leases_and_requests(api: Api) -> None:
    api.create(search={"trials": 5})
    lease = api.lease()
    assert lease is not None
    other = api.lease()
    assert other is not None
    api.finish(other, "infeasible", None, failure={"kind": "diverged", "message": "no"})
    headers = {"Authorization": f"Bearer {api.token('admin')}"}
    answer = api.http.get("/metrics", headers=headers)
    assert answer.status_code == 200
    found = {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(answer.text)
        for s in family.samples
    }
    assert found["cdka_trials", ("failure", ""), ("state", "running")] == 1
    assert found["cdka_trials", ("failure", "diverged"), ("state", "infeasible")] == 1
    assert found["cdka_queue_depth", ("kind", "to_ask")] == 3
    assert found["cdka_leases_held",] == 1
    assert found["cdka_sampler_seconds_count", ("sampler", "auto")] == 2
    assert found["cdka_team_running_trials", ("team", "default")] == 1
    route = ("method", "POST"), ("route", "/api/v1/leases"), ("status", "200")
    assert found["cdka_http_requests_total", *route] == 2


@pytest.mark.parametrize(("role", "status"), [("worker", 403), ("member", 403), ("viewer", 200), ("admin", 200)])
def test_metrics_need_a_viewer_or_admin_token_except_from_loopback(api: Api, role: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {api.token(role)}"}
    assert api.http.get("/metrics", headers=headers).status_code == status
    assert api.http.get("/metrics").status_code == 401  # the test client does not come from a loopback address
    with TestClient(api.http.app, client=("127.0.0.1", 50000)) as local:
        assert local.get("/metrics").status_code == 200
        assert local.get("/metrics", headers={"X-Forwarded-For": "198.51.100.7"}).status_code == 401
