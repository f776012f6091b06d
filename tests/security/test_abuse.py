"""One caller cannot block the service with patterns, sizes, bodies or numbers without a limit."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.conftest import Api, make_study
from workers.failures import Rejected
from workers.tasks.answers import extract

SLOW = r"(([a-z.0-9_]|[a-z0-9._])+)+!"


def timed(call: Any) -> tuple[Any, float]:
    started = time.monotonic()
    return call(), time.monotonic() - started


def prediction(**adapter: Any) -> dict[str, Any]:
    return {"model": {"path": "tiny-bert"}, "adapter": adapter, "budget": {"lora_rank": 4}}


@pytest.mark.parametrize("role", ["viewer", "member"])
def test_a_pattern_with_exponential_backtracking_is_answered_quickly(api: Api, role: str) -> None:
    answer, seconds = timed(lambda: api.call("POST", "/predictions", role, json=prediction(target_modules=SLOW)))
    assert answer.status_code == 422
    assert "matches no module; linear layers are named: " in answer.text
    assert seconds < 30


def test_a_pattern_selects_modules_whose_whole_name_it_matches(api: Api) -> None:
    answer = api.call("POST", "/predictions", json=prediction(target_modules=r".*\.(query|value)"))
    assert answer.status_code == 200, answer.text
    study = api.create(adapter={"target_modules": r".*\.(query|value)"}, search={"trials": 1})
    assert study["budget"]["adapted_layers"] == 4
    lease = api.lease()
    assert lease is not None
    assert {layer["name"].rsplit(".", 1)[1] for layer in lease["trial"]["layers"]} == {"query", "value"}


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (r"(?=query)", "which has no look-around or back-references: invalid perl operator"),
        (r"(a)\1", "invalid escape sequence"),
        (r"(unclosed", "missing )"),
        (r"((a{1000}){1000}){1000}", "invalid repetition size"),
    ],
)
def test_a_pattern_that_cannot_be_matched_in_linear_time_is_rejected(api: Api, pattern: str, told: str) -> None:
    found = api.call("POST", "/studies", json=make_study(adapter={"target_modules": pattern})).json()["errors"]
    (fault,) = [f for f in found if f["pointer"] == "#/adapter/target_modules"]
    assert told in fault["detail"]


def test_an_invalid_answer_pattern_is_rejected_at_submit_and_matching_is_linear(api: Api) -> None:
    from service.schemas.specs import GenerationSpec

    task = {
        "kind": "causal_lm",
        "columns": {"prompt": "text", "completion": "label"},
        "generation": {"extractor": "regex", "pattern": r"(?<=x)y"},
    }
    found = api.call("POST", "/studies", json=make_study(task=task)).json()["errors"]
    assert "#/task/generation/pattern" in {f["pointer"] for f in found}
    generation = GenerationSpec(extractor="regex", pattern=SLOW)
    answer, seconds = timed(lambda: extract("a.b_" * 20_000, generation))
    assert answer is None
    assert seconds < 10
    with pytest.raises(Rejected, match=r"task\.generation\.pattern: not a regular expression of RE2"):
        extract("xy", GenerationSpec(extractor="regex", pattern=r"(?<=x)y"))


# --- what a worker reports

INF, LONE = float("inf"), "\ud800"


@pytest.mark.parametrize(
    "resources",
    [
        {"step_seconds": INF},
        {"step_seconds": float("nan")},
        {"seconds": -1},
        {"seconds": "abc"},
        {"seconds": True},
        {"artifact_bytes": 2**62},
        {"artifact_bytes": 10**400},
        {"other": 10**400},
        {"runner": LONE},
        {"runner": "a\x00b"},
        {LONE: 1},
        {"": 1},
        {"n" * 101: 1},
        {"runner": "x" * 20_001},
        {"data": {"train": {"deeper": 1}}},
        {"data": {"train": INF}},
        {"list": [1, 2]},
        {f"n{k}": k for k in range(101)},
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_invalid_resources_are_rejected_and_pages_still_work(api: Api, resources: dict[str, Any]) -> None:
    import json

    study = api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    body = json.dumps({"state": "completed", "metrics": {"accuracy": 0.5}, "resources": resources})
    path, kind = f"/leases/{lease['id']}/result", {"Content-Type": "application/json"}
    answer = api.call("PUT", path, "worker", content=body, headers=kind)
    assert answer.status_code == 422, answer.text
    assert api.finish(lease, resources={"seconds": 1.5, "data": {"train": "40 examples"}}).status_code == 200
    assert api.call("GET", f"/studies/{study['id']}/trials").status_code == 200
    assert api.call("GET", f"/studies/{study['id']}/export?format=csv").status_code == 200


def test_db_check_finds_invalid_resources_and_repair_removes_them(api: Api, blank_url: str, tmp_path: Any) -> None:
    from sqlalchemy import text

    from service.db.backup import back_up, restore
    from service.db.checks import check, repair
    from service.db.engine import Database

    study = api.create(search={"trials": 2})
    api.run_all(lambda trial: 0.5)
    bad = '{"seconds": "abc", "artifact_bytes": 4611686018427387904, "runner": "\\ud800", "steps": 3}'
    with api.ctx.db.write() as session:
        session.execute(text("UPDATE trials SET resources = :bad WHERE number = 0"), {"bad": bad})
        session.execute(text("UPDATE study_counts SET count = count + 1"))
    faults = check(api.ctx.db)
    assert any(f"resources of trial 0 of study {study['id']}: 'seconds' is not a number" in f for f in faults)
    done = repair(api.ctx.db)
    assert any("taken out: resources of trial 0" in line for line in done)
    assert any("counted anew" in line for line in done)
    assert check(api.ctx.db) == []
    assert repair(api.ctx.db) == []
    trials = api.call("GET", f"/studies/{study['id']}/trials").json()["items"]
    assert trials[0]["resources"] == {"steps": 3}
    back_up(api.ctx.db, tmp_path / "b.cdka")
    other = Database(blank_url)
    restore(other, tmp_path / "b.cdka")
    assert check(other) == []
    other.engine.dispose()


# --- bodies


def test_a_large_body_without_a_valid_token_gets_401_quickly(api: Api) -> None:
    read = 0

    def pieces() -> Any:
        nonlocal read
        for _ in range(64):
            read += 2**20
            yield b"[]," * (2**20 // 3)

    kind = {"Content-Type": "application/json"}
    for headers in (kind, {**kind, "Authorization": "Bearer cdka_wrong"}):
        answer, seconds = timed(lambda h=headers: api.http.post("/api/v1/studies", content=pieces(), headers=h))
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert seconds < 5
    assert read == 0


@pytest.mark.parametrize(
    ("role", "path", "most"),
    [
        ("member", "/studies", 2**20),
        ("admin", "/tokens", 2**20),
        ("member", "/leases/x/result", 2**20),
        ("worker", "/leases/x/reports", 2 * 2**20),
        ("worker", "/leases/x/result", 32 * 2**20),
    ],
)
def test_every_call_limits_the_size_of_its_body(api: Api, role: str, path: str, most: int) -> None:
    method = "PUT" if path.endswith("/result") else "POST"
    kind = {"Content-Type": "application/json"}
    said = api.call(method, path, role, content=b" " * (most + 1), headers=kind)
    assert said.status_code == 413
    assert f"{most:,} bytes" in said.json()["detail"]
    assert api.call(method, path, role, content=b" " * most, headers=kind).status_code != 413


# --- reports


def test_a_request_with_too_many_values_is_rejected(api: Api) -> None:
    api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    metrics = {f"m{k}": float(k) for k in range(200)}
    many = [{"step": step, "metrics": metrics} for step in range(11)]
    said = api.call("POST", f"/leases/{lease['id']}/reports", "worker", json={"reports": many})
    assert said.status_code == 422
    assert "there are 2200 values, more than the 2000 of one request: send several" in said.text
    assert api.call("POST", f"/leases/{lease['id']}/reports", "worker", json={"reports": many[:10]}).status_code == 200


def test_the_sdk_sends_many_values_in_several_requests(api: Api) -> None:
    from service.client import Client
    from service.client.testing import AppTransport

    api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    metrics = {f"m{k}": float(k) for k in range(30)}
    with Client("http://localhost", api.token("worker"), transport=AppTransport(api.http)) as client:
        said = client.report(lease["id"], [(step, metrics) for step in range(1, 101)], "/artifacts/checkpoint")
    assert said.directive == "continue"
    items = api.call("GET", f"/trials/{lease['trial']['id']}/metrics").json()["items"]
    assert len(items) == 3000
    assert api.call("GET", f"/trials/{lease['trial']['id']}").json()["state"] == "running"


def test_the_number_of_values_of_a_trial_is_limited(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.leases import reports

    monkeypatch.setattr(reports, "MOST_VALUES_OF_TRIAL", 300)
    api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    metrics = {f"m{k}": float(k) for k in range(200)}
    path = f"/leases/{lease['id']}/reports"
    assert api.call("POST", path, "worker", json={"reports": [{"step": 1, "metrics": metrics}]}).status_code == 200
    said = api.call("POST", path, "worker", json={"reports": [{"step": 2, "metrics": metrics}]})
    assert said.status_code == 422
    assert "evaluate less often (training.eval_steps)" in said.json()["detail"]


# --- a server without tokens


@pytest.fixture
def open_api(ctx: Any) -> Any:
    from fastapi.testclient import TestClient

    from service.app import create_app

    ctx.settings.auth = "off"
    with TestClient(create_app(ctx), base_url="http://localhost:8765", raise_server_exceptions=False) as http:
        yield http


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1:8765", "[::1]:8765", "localhost"])
def test_without_tokens_requests_to_loopback_names_are_accepted(open_api: Any, host: str) -> None:
    assert open_api.get("/api/v1/studies", headers={"Host": host}).status_code == 200
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert open_api.post("/api/v1/tokens", json={"name": "n", "role": "viewer"}, headers=headers).status_code == 201


@pytest.mark.parametrize("host", ["evil.example.org:8765", "127.0.0.1.nip.io:8765", "192.168.1.7:8765", ""])
def test_without_tokens_requests_to_other_names_are_rejected(open_api: Any, host: str) -> None:
    """As after DNS rebinding, when a browser takes this server for the page's own server."""
    for method, path in (("GET", "/api/v1/studies"), ("POST", "/api/v1/tokens"), ("GET", "/"), ("GET", "/operation")):
        answer = open_api.request(method, path, headers={"Host": host}, follow_redirects=False)
        assert answer.status_code in (400, 403), (method, path, answer.status_code)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example.org"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_without_tokens_requests_from_other_sites_are_rejected(open_api: Any, headers: dict[str, str]) -> None:
    study = open_api.post("/api/v1/studies", json=make_study()).json()["id"]
    for method, path in (("POST", f"/api/v1/studies/{study}/cancel"), ("DELETE", f"/api/v1/studies/{study}")):
        assert open_api.request(method, path, headers=headers).status_code == 403
    assert open_api.get(f"/api/v1/studies/{study}").json()["state"] == "queued"


def test_text_logs_cannot_be_forged(capfd: pytest.CaptureFixture[str]) -> None:
    import logging

    from service.server.logs import set_up_logging

    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    try:
        set_up_logging("text", lambda: "id")
        logging.getLogger("service").info("GET /x\n2026 ERROR forged \x1b[2J\u202e 200")
        (line,) = [found for found in capfd.readouterr().err.splitlines() if "GET /x" in found]
        assert r"GET /x\n2026 ERROR forged \x1b[2J\u202e 200" in line
    finally:
        root.handlers[:], root.level = before[0], before[1]


def test_logins_with_wrong_tokens_are_limited(api: Api) -> None:
    codes = [api.http.post("/login", data={"token": f"wrong {k}"}).status_code for k in range(65)]
    assert codes[0] == 401
    assert codes[-1] == 429
    # A valid token still works, because many users may share a proxy's address.
    answer = api.http.post("/login", data={"token": api.token("member")}, follow_redirects=False)
    assert answer.status_code == 303


def test_wrong_tokens_of_many_addresses_are_limited_together() -> None:
    from service.api.limits import RateLimits
    from service.errors import TooMany

    limits = RateLimits(0, refusals_a_minute=10, all_refusals_a_minute=50)
    for k in range(50):
        limits.count_refusal(f"203.0.113.{k}")
    with pytest.raises(TooMany, match="more than 50 requests of this kind a minute"):
        limits.count_refusal("198.51.100.7")
