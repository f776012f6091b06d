"""Event streams deliver every event, in order."""

from __future__ import annotations

import json
import threading

import pytest

from service.api import events as events_api
from service.api import hub
from tests.conftest import Api


def stream(api: Api, study_id: str, last: int | None = None) -> list[tuple[int, str]]:
    """Read a study's event stream to its end. Returns the events' numbers and kinds."""
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


def test_the_stream_has_every_event_in_order_and_resumes_after_the_last_event_id(api: Api) -> None:
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


def test_a_stream_ends_when_its_token_is_revoked(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(events_api, "KEEPALIVE_SECONDS", 0.05)
    study = api.create(search={"trials": 2})
    token = api.call("POST", "/tokens", "admin", json={"name": "short", "role": "viewer"}).json()
    api.secrets["default/viewer"] = token["token"]
    found: list[list[tuple[int, str]]] = []
    listener = threading.Thread(target=lambda: found.append(stream(api, study["id"])))
    listener.start()
    listener.join(timeout=0.5)
    assert listener.is_alive()
    assert api.call("DELETE", f"/tokens/{token['id']}", "admin").status_code == 204
    listener.join(timeout=10)
    assert not listener.is_alive()
    assert api.lease() is not None
    assert "trial.started" not in [kind for _, kind in found[0]]
