"""What the API promises of every call: repeats, pages, streams, sizes, rates, ids, logs, metrics."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from service.api import events as events_api
from service.api import hub
from service.app import create_app, make_context
from service.context.context import Context
from service.db.models import Base
from service.server.logs import set_up_logging
from service.server.maintenance import KEPT_ANSWERS, tidy
from tests.conftest import Api, FakeClock, make_study


def post(api: Api, path: str, key: str, body: Any = None, role: str = "member") -> Any:
    return api.call("POST", path, role, json=body, headers={"Idempotency-Key": key})


# Idempotency.


def test_a_repeated_post_has_one_effect_also_after_a_restart(api: Api, ctx: Context) -> None:
    first = post(api, "/studies", "key-1", make_study())
    again = post(api, "/studies", "key-1", make_study())
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert len(api.call("GET", "/studies").json()["items"]) == 1
    restarted = make_context(ctx.settings, ctx.clock)
    with TestClient(create_app(restarted)) as http:
        assert post(Api(restarted, http, api.secrets), "/studies", "key-1", make_study()).content == first.content
    restarted.db.engine.dispose()


def test_a_key_with_another_body_or_path_is_refused(api: Api) -> None:
    post(api, "/studies", "key-1", make_study())
    for path, body in (("/studies", make_study(name="other")), ("/predictions", make_study())):
        refused = post(api, path, "key-1", body)
        assert refused.status_code == 422
        assert refused.json()["type"] == "urn:cdka:problem:idempotency-key-reused"
    made = post(api, "/studies", "key-2", make_study(name="other"))
    assert made.status_code == 201
    # What is asked for in the query is part of the request, too.
    path = f"/studies/{made.json()['id']}/pause"
    assert post(api, f"{path}?drain=true", "key-3").status_code == 200
    assert post(api, f"{path}?drain=false", "key-3").status_code == 422


def test_keys_belong_to_their_token_and_what_was_refused_is_not_kept(api: Api) -> None:
    post(api, "/studies", "key-1", make_study())
    theirs = api.call(
        "POST", "/studies", "member", "other", json=make_study(name="x"), headers={"Idempotency-Key": "key-1"}
    )
    assert theirs.status_code == 201
    assert post(api, "/studies", "key-3", make_study(name="")).status_code == 422
    assert post(api, "/studies", "key-3", make_study()).status_code == 201


def test_the_same_key_at_once_is_one_study(api: Api) -> None:
    api.token("member")
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: post(api, "/studies", "race", make_study()), range(6)))
    assert {a.status_code for a in answers} == {201}
    assert len({a.json()["id"] for a in answers}) == 1
    assert len(api.call("GET", "/studies").json()["items"]) == 1


def test_every_lifecycle_post_takes_a_key_and_leases_too(api: Api) -> None:
    study = post(api, "/studies", "create", make_study()).json()
    lease = post(api, "/leases", "lease", {"runner": "r"}, "worker").json()
    assert post(api, "/leases", "lease", {"runner": "r"}, "worker").json() == lease
    pause = post(api, f"/studies/{study['id']}/pause", "pause")
    assert post(api, f"/studies/{study['id']}/pause", "pause").json() == pause.json()
    assert post(api, f"/studies/{study['id']}/pause", "another").status_code == 409


def test_secrets_in_stored_answers_are_encrypted(api: Api) -> None:
    body = {"name": "ci", "role": "viewer"}
    made = post(api, "/tokens", "token", body, "admin").json()
    assert post(api, "/tokens", "token", body, "admin").json()["token"] == made["token"]
    with api.ctx.db.read() as session:
        rows = [str(row) for table in Base.metadata.sorted_tables for row in session.execute(table.select())]
    assert not [row for row in rows if made["token"] in row]


def test_revoked_tokens_get_no_stored_answer_and_answers_expire(api: Api, ctx: Context, clock: FakeClock) -> None:
    made = api.call("POST", "/tokens", "admin", json={"name": "ci", "role": "member"}).json()
    headers = {"Authorization": f"Bearer {made['token']}", "Idempotency-Key": "k"}
    assert api.http.post("/api/v1/studies", json=make_study(), headers=headers).status_code == 201
    api.call("DELETE", f"/tokens/{made['id']}", "admin")
    assert api.http.post("/api/v1/studies", json=make_study(), headers=headers).status_code == 401
    post(api, "/studies", "old", make_study())
    clock.advance(KEPT_ANSWERS / timedelta(seconds=1) + 1)
    tidy(ctx)
    post(api, "/studies", "old", make_study())
    assert len(api.call("GET", "/studies").json()["items"]) == 3


# Lists.


def test_lists_are_paged_filtered_and_sorted(api: Api, clock: FakeClock) -> None:
    ids = []
    for k in range(5):
        clock.advance(1)
        ids.append(api.create(name=f"study {k}")["id"])
    api.call("POST", f"/studies/{ids[1]}/cancel")
    page = api.call("GET", "/studies", params={"limit": 2}).json()
    assert [s["id"] for s in page["items"]] == ids[:2:-1]
    rest = api.call("GET", "/studies", params={"limit": 9, "cursor": page["next_cursor"]}).json()
    assert [s["id"] for s in rest["items"]] == ids[2::-1]
    assert rest["next_cursor"] is None
    oldest = api.call("GET", "/studies", params={"order": "oldest", "limit": 2}).json()
    assert [s["id"] for s in oldest["items"]] == ids[:2]
    assert [s["id"] for s in api.call("GET", "/studies", params={"state": "cancelled"}).json()["items"]] == [ids[1]]
    both = api.call("GET", "/studies", params={"state": ["cancelled", "queued"]}).json()["items"]
    assert len(both) == 5
    assert [s["id"] for s in api.call("GET", "/studies", params={"name": "UDY 3"}).json()["items"]] == [ids[3]]
    assert api.call("GET", "/studies", params={"name": "%"}).json()["items"] == []  # no pattern: a per cent sign
    for wrong in ({"limit": 0}, {"limit": 1000}, {"state": "lost"}, {"cursor": "'; --"}, {"order": "random"}):
        assert api.call("GET", "/studies", params=wrong).status_code == 422, wrong


def test_trials_are_filtered_and_sorted(api: Api) -> None:
    study = api.create(search={"trials": 3}, compare={"seeds": 1, "learning_rate": "shared"})
    api.run_all(lambda t: 0.5)
    path = f"/studies/{study['id']}/trials"
    newest = api.call("GET", path, params={"order": "-number", "limit": 2}).json()
    assert [t["number"] for t in newest["items"]] == sorted((t["number"] for t in newest["items"]), reverse=True)
    more = api.call("GET", path, params={"order": "-number", "cursor": newest["next_cursor"]}).json()["items"]
    assert more[0]["number"] == newest["items"][-1]["number"] - 1
    assert {t["phase"] for t in api.call("GET", path, params={"phase": "search"}).json()["items"]} == {"search"}
    assert api.call("GET", path, params={"state": "failed"}).json()["items"] == []


# Events.


def stream(api: Api, study_id: str, last: int | None = None) -> list[tuple[int, str]]:
    """The stream of a study that has ended, to its end."""
    headers = {"Authorization": f"Bearer {api.token('viewer')}"}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    with api.http.stream("GET", f"/api/v1/studies/{study_id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = "".join(answer.iter_text()).split("\n\n")
    found = []
    for block in blocks:
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "data" in fields:
            data = json.loads(fields["data"])
            assert (data["number"], data["kind"]) == (int(fields["id"]), fields["event"])
            found.append((data["number"], data["kind"]))
    return found


def test_the_stream_holds_everything_in_order_and_goes_on_after_the_last_event(api: Api) -> None:
    study = api.create(search={"trials": 2, "concurrency": 1})
    lease = api.lease()
    assert lease is not None
    api.report(lease, 0.1, 0.2)
    api.finish(lease)
    api.run_all(lambda t: 0.5)
    found = stream(api, study["id"])
    assert [number for number, _ in found] == list(range(1, len(found) + 1))  # no gap
    kinds = [kind for _, kind in found]
    assert kinds[0] == "study.created"
    assert kinds[-1] == "study.state"
    assert kinds.count("trial.started") == kinds.count("trial.ended") == 2
    assert kinds.count("trial.reported") == 1
    assert stream(api, study["id"], found[3][0]) == found[4:]
    log = api.call("GET", f"/studies/{study['id']}/events/log", params={"after": 2, "limit": 3}).json()
    assert [e["number"] for e in log["items"]] == [3, 4, 5]
    assert log["next_cursor"] == "5"
    assert api.call("GET", f"/studies/{study['id']}").json()["version"] == len(found)


def test_an_open_event_stream_gets_new_events(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(events_api, "KEEPALIVE_SECONDS", 0.05)
    study = api.create(search={"trials": 1})
    found: list[list[tuple[int, str]]] = []
    listeners = [threading.Thread(target=lambda: found.append(stream(api, study["id"]))) for _ in range(3)]
    for listener in listeners:
        listener.start()
    lease = api.lease()
    assert lease is not None
    for k in range(20):
        api.report(lease, 0.1 * k, first_step=k + 1)
    api.finish(lease)
    for listener in listeners:
        listener.join(timeout=20)
    assert len(found) == 3
    assert found[0] == found[1] == found[2]
    assert [kind for _, kind in found[0]].count("trial.reported") == 20


# Exports.


def exported(api: Api, study: dict[str, Any], form: str) -> Any:
    answer = api.call("GET", f"/studies/{study['id']}/export", params={"format": form})
    assert answer.status_code == 200
    return answer


def test_exports_hold_every_trial(api: Api, tmp_path: Path) -> None:
    study = api.create(name="=cmd()", search={"trials": 5, "pruner": "asha", "concurrency": 1})
    values = iter([0.9, 0.1, 0.8, 0.7])
    for value in values:
        lease = api.lease()
        assert lease is not None
        if api.report(lease, value).json()["directive"] == "stop":
            api.finish(lease, "pruned", value)
        else:
            api.finish(lease, value=value, resources={"seconds": 1.5, "runner": "@evil"})
    lease = api.lease()
    assert lease is not None
    api.finish(lease, "infeasible", None, failure={"kind": "diverged", "message": "=1+1"})
    lines = exported(api, study, "csv").text.splitlines()
    assert len(lines) == 6
    header = lines[0].split(",")
    rows = [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
    assert rows[0]["metrics.accuracy"] == "0.9"
    assert rows[0]["resources.runner"] == "'@evil"  # a spreadsheet would take it for a formula
    assert rows[4]["failure_message"] == "'=1+1"
    everything = exported(api, study, "json").json()
    assert [t["number"] for t in everything["trials"]] == [0, 1, 2, 3, 4]
    assert everything["comparison"]["best_trial"]["value"] == 0.9
    file = tmp_path / "study.db"
    file.write_bytes(exported(api, study, "optuna").content)
    loaded = optuna.load_study(study_name=study["id"], storage=f"sqlite:///{file}")
    states = [t.state.name for t in loaded.trials]
    assert states[0] == "COMPLETE"
    assert states[1] == "PRUNED"
    assert states[4] == "FAIL"
    assert loaded.best_value == 0.9
    assert loaded.best_params["r1"] == everything["trials"][0]["params"]["r1"]
    assert loaded.user_attrs["name"] == "=cmd()"
    loaded._storage.remove_session()
    loaded._storage._backend.engine.dispose()  # type: ignore[attr-defined]


def test_an_adapter_is_fetched_as_a_zip_and_nothing_outside_is(api: Api, ctx: Context, tmp_path: Path) -> None:
    import io
    import zipfile

    study = api.create(search={"trials": 2})
    folder = Path(ctx.settings.artifacts_url) / "studies" / study["id"] / "trials" / "00000" / "attempt-1" / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    lease = api.lease()
    assert lease is not None
    api.finish(lease, artifact=str(folder))
    answer = api.call("GET", f"/trials/{lease['trial']['id']}/adapter")
    assert zipfile.ZipFile(io.BytesIO(answer.content)).namelist() == ["adapter_config.json"]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("x")
    lease = api.lease()
    assert lease is not None
    api.finish(lease, artifact=f"{folder}/../../../../../../../{outside}")
    assert api.call("GET", f"/trials/{lease['trial']['id']}/adapter").status_code == 404


# Sizes, rates, ids, logs.


def test_a_body_that_is_too_large_is_rejected(api: Api) -> None:
    limit = api.ctx.settings.max_body_bytes
    said = api.call("POST", "/studies", content=b"x" * (limit + 1))
    assert said.status_code == 413
    assert said.json()["type"] == "urn:cdka:problem:too-large"

    def pieces() -> Any:
        for _ in range(limit // 2**20 + 2):
            yield b"x" * 2**20

    headers = {"Authorization": f"Bearer {api.token('member')}", "Content-Type": "application/json"}
    assert api.http.post("/api/v1/studies", content=pieces(), headers=headers).status_code == 413


def test_rate_limits_return_retry_after_and_exempt_workers(api: Api, ctx: Context) -> None:
    ctx.settings.rate_limit = 5
    with TestClient(create_app(ctx)) as http:
        limited = Api(ctx, http, api.secrets)
        for _ in range(5):
            assert limited.call("GET", "/studies").status_code == 200
        refused = limited.call("GET", "/studies")
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 61
        assert limited.call("GET", "/studies", "viewer").status_code == 200
        for _ in range(20):
            assert limited.call("GET", "/demand", "worker").status_code == 200


def test_an_address_with_many_invalid_tokens_is_limited(api: Api) -> None:
    codes = [api.http.get("/api/v1/studies", headers={"Authorization": f"Bearer {k}"}).status_code for k in range(70)]
    assert codes[0] == 401
    assert codes[-1] == 429
    assert api.call("GET", "/studies").status_code == 200  # others behind the same proxy are let in


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
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # the test client's own
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


def test_metrics_tell_of_queue_trials_leases_and_requests(api: Api) -> None:
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
    assert found["cdka_sampler_seconds_count", ("sampler", "tpe")] == 2
    assert found["cdka_team_running_trials", ("team", "default")] == 1
    route = ("method", "POST"), ("route", "/api/v1/leases"), ("status", "200")
    assert found["cdka_http_requests_total", *route] == 2


@pytest.mark.parametrize(("role", "status"), [("worker", 403), ("member", 403), ("viewer", 200), ("admin", 200)])
def test_metrics_take_an_operators_token_unless_asked_for_on_this_machine(api: Api, role: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {api.token(role)}"}
    assert api.http.get("/metrics", headers=headers).status_code == status
    assert api.http.get("/metrics").status_code == 401  # the test client is no loopback address
    with TestClient(api.http.app, client=("127.0.0.1", 50000)) as local:
        assert local.get("/metrics").status_code == 200
        assert local.get("/metrics", headers={"X-Forwarded-For": "198.51.100.7"}).status_code == 401


def test_unreadable_bodies_and_unknown_paths_return_problems(api: Api) -> None:
    headers = {"Content-Type": "application/json"}
    for content in (b"{", b"\xff\xfe", b'{"name": "\xc3\x28"}', b"[" * 100_000):
        said = api.call("POST", "/leases", "worker", content=content, headers=headers)
        assert said.status_code == 422, content[:10]
        assert said.headers["content-type"] == "application/problem+json"
    assert api.call("GET", "/nothing").json()["status"] == 404
    assert api.call("PUT", "/studies").json()["status"] == 405


def test_text_that_a_database_cannot_keep_is_refused(api: Api) -> None:
    assert api.call("POST", "/studies", json=make_study(name="a\x00b")).status_code == 422
    study = api.create()
    assert api.call("PATCH", f"/studies/{study['id']}", json={"name": "\x1b[31m"}).status_code == 422
    lease = api.lease()
    assert lease is not None
    failure = {"kind": "error", "message": "a\x00b\x1b[31mc\n"}
    assert api.finish(lease, "failed", None, failure=failure).status_code == 200
    assert api.call("GET", f"/trials/{lease['trial']['id']}").json()["failure"]["message"] == "ab[31mc\n"
    with api.ctx.db.read() as session:
        session.execute(text("SELECT 1"))


def test_docs_come_from_this_server_alone(api: Api) -> None:
    page = api.http.get("/docs")
    assert "https://" not in page.text
    for path in ("/static/swagger-ui/swagger-ui-bundle.js", "/static/swagger-ui/swagger-ui.css", "/static/docs.js"):
        assert api.http.get(path).status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_every_documented_error_has_an_example_of_its_own_form(api: Api) -> None:
    schema = api.http.get("/openapi.json").json()
    seen = set()
    for path, item in schema["paths"].items():
        for operation in item.values():
            for status, response in operation["responses"].items():
                content = response.get("content", {}).get("application/problem+json")
                if content is not None and path.startswith("/api/v1"):
                    example = content["example"]
                    assert example["status"] == int(status)
                    assert example["type"].startswith("urn:cdka:problem:")
                    assert {"type", "title", "status", "detail"} <= example.keys()
                    seen.add(int(status))
    assert seen == {401, 403, 404, 409, 412, 413, 422, 429, 503}


@pytest.mark.parametrize(
    ("method", "path", "body", "pointer"),
    [
        ("POST", "/teams", {"name": "x", "max_storage_bytes": False}, "#/max_storage_bytes"),
        ("POST", "/teams", {"name": "x", "weight": True}, "#/weight"),
        ("POST", "/leases", {"runner": "r", "max": True}, "#/max"),
        ("POST", "/leases", {"runner": "r", "cpus": "2"}, "#/cpus"),
    ],
)
def test_booleans_and_text_are_not_numbers(api: Api, method: str, path: str, body: Any, pointer: str) -> None:
    refused = api.call(method, path, "admin", json=body)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == pointer
