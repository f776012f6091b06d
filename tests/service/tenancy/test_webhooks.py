"""Webhooks are signed, retried and logged, and never sent to private addresses."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from service.context.context import Context
from service.errors import InvalidRequest
from service.tenancy.webhooks import BACK_OFF, deliver_due, permitted_address
from tests.conftest import Api, FakeClock


class Receiver:
    """A server that records deliveries and responds with the status codes in ``answers``."""

    def __init__(self) -> None:
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.taken.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://localhost:{self.server.server_port}/hook?x=1"


@pytest.fixture
def receiver(ctx: Context) -> Iterator[Receiver]:
    ctx.settings.webhook_private = True
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False) as made:
        yield made


def hook(api: Api, receiver: Receiver, *events: str) -> dict[str, Any]:
    body = {"url": receiver.url, **({"events": list(events)} if events else {})}
    response = api.call("POST", "/webhooks", json=body)
    assert response.status_code == 201, response.text
    return response.json()


def log(api: Api, made: dict[str, Any]) -> list[dict[str, Any]]:
    return api.call("GET", f"/webhooks/{made['id']}/deliveries").json()["items"]


def test_events_are_delivered_once_signed_and_logged(api: Api, receiver: Receiver, http: httpx.Client) -> None:
    made = hook(api, receiver, "study.state", "trial.ended")
    study = api.create(search={"trials": 1})
    api.run_all(lambda t: 0.5)
    while deliver_due(api.ctx, http):
        pass
    kinds = [json.loads(body)["kind"] for _, body in receiver.taken]
    assert sorted(kinds) == ["study.state", "study.state", "trial.ended"]
    headers, body = receiver.taken[0]
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(made["secret"].removeprefix("whsec_"))
    expected = "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == expected
    assert headers["host"].startswith("localhost:")
    assert json.loads(body)["study_id"] == study["id"]
    assert {d["state"] for d in log(api, made)} == {"delivered"}
    assert {d["status"] for d in log(api, made)} == {204}
    assert "secret" not in api.call("GET", "/webhooks").json()["items"][0]
    assert deliver_due(api.ctx, http) == 0


def test_failed_deliveries_are_retried_with_backoff_then_abandoned(
    api: Api, receiver: Receiver, http: httpx.Client, clock: FakeClock
) -> None:
    made = hook(api, receiver)
    receiver.answers = [500, 302, *[503] * 20]
    study = api.create()
    api.call("POST", f"/studies/{study['id']}/cancel")
    assert deliver_due(api.ctx, http) == 1
    (entry,) = log(api, made)
    assert (entry["state"], entry["attempts"], entry["status"], entry["error"]) == ("pending", 1, 500, "answered 500")
    for pause in BACK_OFF:
        clock.advance(pause - 1)
        assert deliver_due(api.ctx, http) == 0
        clock.advance(2)
        assert deliver_due(api.ctx, http) == 1
    (entry,) = log(api, made)
    assert (entry["state"], entry["attempts"]) == ("given_up", 1 + len(BACK_OFF))
    assert len({headers["webhook-id"] for headers, _ in receiver.taken}) == 1
    clock.advance(10**6)
    assert deliver_due(api.ctx, http) == 0


def test_a_delivery_whose_sender_crashed_is_sent_again(
    api: Api, receiver: Receiver, http: httpx.Client, clock: FakeClock
) -> None:
    from service.tenancy.webhooks import claim

    made = hook(api, receiver)
    api.call("POST", f"/studies/{api.create()['id']}/cancel")
    assert len(claim(api.ctx)) == 1  # a sender claims the delivery and dies
    assert deliver_due(api.ctx, http) == 0
    clock.advance(121)
    assert deliver_due(api.ctx, http) == 1
    assert log(api, made)[0]["state"] == "delivered"


def test_webhooks_get_only_their_teams_events_of_the_chosen_kinds(
    api: Api, receiver: Receiver, http: httpx.Client
) -> None:
    theirs = api.call("POST", "/webhooks", "member", "other", json={"url": receiver.url})
    assert theirs.status_code == 201
    made = hook(api, receiver, "study.created")
    api.create()
    deliver_due(api.ctx, http)
    assert len(receiver.taken) == 1
    assert api.call("DELETE", f"/webhooks/{made['id']}").status_code == 204
    api.create()
    assert deliver_due(api.ctx, http) == 0


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "::1", "fd00::1", "0.0.0.0", "::ffff:10.0.0.1"],
)
def test_private_addresses_are_rejected_under_any_name(address: str) -> None:
    for url in ("http://innocent.example/hook", f"http://{'[' + address + ']' if ':' in address else address}/"):
        with pytest.raises(InvalidRequest) as caught:
            permitted_address(url, False, lambda host, port: ["93.184.215.14", address])
        assert "CDKA_WEBHOOK_PRIVATE" in caught.value.faults[0].detail
    assert permitted_address("http://x.example/", True, lambda host, port: [address]) == address


@pytest.mark.parametrize(
    "url", ["ftp://example.org/", "http://user:pass@example.org/", "file:///etc/passwd", "//example.org", "http://"]
)
def test_urls_that_are_not_plain_http_are_rejected(url: str) -> None:
    with pytest.raises(InvalidRequest):
        permitted_address(url, True, lambda host, port: ["93.184.215.14"])


def test_dns_rebinding_does_not_reach_private_addresses(
    api: Api, receiver: Receiver, http: httpx.Client, ctx: Context
) -> None:
    made = hook(api, receiver)
    ctx.settings.webhook_private = False
    api.call("POST", f"/studies/{api.create()['id']}/cancel")
    deliver_due(api.ctx, http)
    assert receiver.taken == []
    assert "not on the public internet" in log(api, made)[0]["error"]


def test_a_webhook_to_loopback_is_rejected_at_creation(api: Api) -> None:
    refused = api.call("POST", "/webhooks", json={"url": "http://127.0.0.1:9/"})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "#/url"
