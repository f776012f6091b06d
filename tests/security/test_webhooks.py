"""Webhook receivers that answer endlessly or slowly, invalid addresses, and effects on other teams' deliveries."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from service.context.context import Context
from service.errors import InvalidRequest
from service.tenancy import webhooks
from service.tenancy.deliveries import Deliverer
from service.tenancy.webhooks import deliver_due, is_public, permitted_address
from tests.conftest import Api

Answer = Callable[[socket.socket], None]


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(600):
        connection.sendall(b"x")
        time.sleep(0.1)


def flood(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 629145600\r\n\r\n")
    piece = b"x" * 2**20
    for _ in range(600):
        connection.sendall(piece)


def silence(connection: socket.socket) -> None:
    time.sleep(60)


def nonsense(connection: socket.socket) -> None:
    connection.sendall(b"\x00\xff" * 5000)


def kind(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


class Receiver:
    """Answers every connection with the same function."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.taken = 0
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                self.taken += 1
                self._answer(connection)
            except OSError:
                return

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def receivers(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], Receiver]]:
    ctx.settings.webhook_private = True
    monkeypatch.setattr(webhooks, "TOTAL_SECONDS", 1.0)
    made: list[Receiver] = []

    def make(answer: Answer) -> Receiver:
        made.append(Receiver(answer))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False) as made:
        yield made


def hook(api: Api, url: str, team: str = "default") -> dict[str, Any]:
    answer = api.call("POST", "/webhooks", "member", team, json={"url": url, "events": ["study.created"]})
    assert answer.status_code == 201, answer.text
    return answer.json()  # type: ignore[no-any-return]


def entry(api: Api, made: dict[str, Any], team: str = "default") -> dict[str, Any]:
    (found,) = api.call("GET", f"/webhooks/{made['id']}/deliveries", "member", team).json()["items"]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("answer", [drip, silence, nonsense])
def test_a_receiver_that_does_not_answer_properly_costs_a_bounded_time(
    api: Api, receivers: Any, http: httpx.Client, answer: Answer
) -> None:
    made = hook(api, receivers(answer).url)
    api.create()
    started = time.monotonic()
    assert deliver_due(api.ctx, http) == 1
    assert time.monotonic() - started < 5
    found = entry(api, made)
    assert (found["state"], found["attempts"]) == ("pending", 1)
    assert found["error"]


def test_a_large_answer_is_not_read_into_memory(api: Api, receivers: Any, http: httpx.Client) -> None:
    made = hook(api, receivers(flood).url)
    api.create()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert deliver_due(api.ctx, http) == 1
    assert entry(api, made)["state"] == "delivered"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_an_unexpected_exception_counts_as_an_attempt_and_blocks_no_other_delivery(
    api: Api, receivers: Any, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = hook(api, receivers(kind).url), receivers(kind)
    other = hook(api, good.url)
    original = webhooks._parsed

    def broken(url: str) -> Any:
        if url == bad["url"]:
            raise RuntimeError("what nobody thought of")
        return original(url)

    monkeypatch.setattr(webhooks, "_parsed", broken)
    api.create()
    assert deliver_due(api.ctx, http) == 2
    assert entry(api, bad)["error"] == "RuntimeError: what nobody thought of"
    assert entry(api, other)["state"] == "delivered"


def test_a_team_does_not_wait_for_another_teams_receivers(api: Api, receivers: Any) -> None:
    slow = [hook(api, receivers(silence).url) for _ in range(10)]
    theirs = hook(api, receivers(kind).url, "other")
    study = api.call("POST", "/studies", "member", "other", json=None)
    assert study.status_code == 422
    api.create()
    from tests.conftest import make_study

    assert api.call("POST", "/studies", "member", "other", json=make_study()).status_code == 201
    deliverer = Deliverer(api.ctx)
    started = time.monotonic()
    try:
        assert deliverer.round() == 11
        while entry(api, theirs, "other")["state"] != "delivered":
            assert time.monotonic() - started < 3, "it waits for the other team"
            time.sleep(0.05)
        assert entry(api, slow[-1])["attempts"] == 0
        # While a team is served, no more of its deliveries are claimed; those of other teams are.
        assert api.call("POST", "/studies", "member", "other", json=make_study()).status_code == 201
        assert deliverer.round() == 1
    finally:
        deliverer.close()
    assert entry(api, slow[0])["attempts"] == 1


@pytest.mark.parametrize(
    "address",
    [
        "64:ff9b::10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::a00:1",
        "2002:0a00:0001::",
        "2002:7f00:0001::1",
        "::10.0.0.1",
        "::127.0.0.1",
        "::ffff:192.168.0.1",
        "fec0::1",
        "ff02::1",
        "224.0.0.1",
        "239.255.255.250",
        "100.64.0.1",
        "192.0.2.1",
        "255.255.255.255",
        "fe80::1%eth0",
    ],
)
def test_private_addresses_are_rejected_in_every_notation(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(InvalidRequest):
        permitted_address("http://x.example/", False, lambda host, port: [address])


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::5db8:d70e"])
def test_public_addresses_are_recognised(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org:99999/",
        "http://example.org:-1/",
        "http://example.org:0/",
        "http://exa mple.org/",
        "http://[::1/",
        "http://" + "a" * 70 + ".org/",
        "http://example.org/pfad/ü",
        "http://ex\u3002ample..org/",
    ],
)
def test_an_invalid_url_is_rejected_when_the_webhook_is_created(api: Api, url: str) -> None:
    answer = api.call("POST", "/webhooks", json={"url": url})
    assert answer.status_code == 422, answer.text


def test_a_non_ascii_host_is_resolved_by_its_ascii_name() -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["93.184.215.14"]

    assert permitted_address("http://bücher.example/", False, resolve) == "93.184.215.14"
    assert asked == ["xn--bcher-kva.example"]
