"""Trial logs: text is appended in order, repeated text is stored once, size is limited, reads start anywhere."""

from __future__ import annotations

from typing import Any

import pytest

from service.leases import trial_logs
from tests.conftest import Api


def append(api: Api, lease: dict[str, Any], start: int, text: str) -> Any:
    return api.call("POST", f"/leases/{lease['id']}/logs", "worker", json={"start": start, "text": text})


def read(api: Api, lease: dict[str, Any], **asked: Any) -> Any:
    return api.call("GET", f"/trials/{lease['trial']['id']}/logs", params=asked)


@pytest.fixture
def lease(api: Api) -> dict[str, Any]:
    api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    return lease


def test_a_log_grows_and_can_be_followed(api: Api, lease: dict[str, Any]) -> None:
    assert read(api, lease).json() == {
        "attempt": 1, "attempts": 1, "start": 0, "next": 0, "text": "", "running": True,
    }  # fmt: skip
    assert append(api, lease, 0, "first line\n").json() == {"next": 11}
    assert append(api, lease, 11, "zweite Zeile: ä\n").json() == {"next": 27}
    seen = read(api, lease).json()
    assert seen["text"] == "first line\nzweite Zeile: ä\n"
    assert read(api, lease, after=seen["next"]).json()["text"] == ""
    append(api, lease, 27, "third\n")
    assert read(api, lease, after=seen["next"]).json()["text"] == "third\n"
    assert read(api, lease, limit=6).json() == {**seen, "start": 27, "next": 33, "text": "third\n"}
    assert read(api, lease, after=6, limit=12).json()["text"] == "line\nzweite "


def test_repeated_log_text_is_stored_once(api: Api, lease: dict[str, Any]) -> None:
    append(api, lease, 0, "abc")
    assert append(api, lease, 0, "abc").json() == {"next": 3}
    assert append(api, lease, 1, "bcdef").json() == {"next": 6}
    assert read(api, lease).json()["text"] == "abcdef"


def test_a_log_keeps_the_newest_characters(api: Api, lease: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_logs, "MOST_KEPT", 100)
    for k in range(50):
        append(api, lease, 10 * k, f"line {k:04d}\n")
    kept = read(api, lease, after=0).json()
    assert (kept["start"], kept["next"]) == (400, 500)
    assert kept["text"].startswith("line 0040\n")


def test_every_attempt_has_its_own_log_and_a_lost_lease_cannot_append(api: Api, lease: dict[str, Any]) -> None:
    append(api, lease, 0, "first attempt")
    api.finish(lease, "released", None)
    again = api.lease("runner-2")
    assert again is not None
    append(api, again, 0, "second attempt")
    assert append(api, lease, 13, "late").status_code == 409
    assert read(api, lease).json()["text"] == "second attempt"
    first = read(api, lease, attempt=1).json()
    assert (first["text"], first["running"], first["attempts"]) == ("first attempt", False, 2)
    missing = read(api, lease, attempt=3)
    assert missing.status_code == 404
    assert "2 attempts" in missing.json()["detail"]


def test_logs_drop_control_characters_and_are_hidden_from_other_teams(api: Api, lease: dict[str, Any]) -> None:
    append(api, lease, 0, "a\x00b\x1b[31mc\n")
    assert read(api, lease).json()["text"] == "ab[31mc\n"
    assert api.call("GET", f"/trials/{lease['trial']['id']}/logs", team="other").status_code == 404
