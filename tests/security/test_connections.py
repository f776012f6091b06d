"""Stalled connections are cut and do not affect other callers."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import uvicorn

from service.api.connections import SERVER_OPTIONS, BoundedProtocol
from service.api.middleware import RequestMiddleware
from service.app import create_app
from service.cli.processes import free_port
from tests.conftest import Api

SECONDS = 1.0


@pytest.fixture
def port(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server whose connection timeouts are one second."""
    monkeypatch.setattr(BoundedProtocol, "header_seconds", SECONDS)
    monkeypatch.setattr(BoundedProtocol, "stalled_seconds", SECONDS)
    app = create_app(api.ctx)
    for middleware in app.user_middleware:
        if middleware.cls is RequestMiddleware:
            middleware.kwargs |= {"body_seconds": 3 * SECONDS, "body_idle_seconds": SECONDS}
    number = free_port(19750)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=number, **SERVER_OPTIONS))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
    yield number
    server.should_exit = True
    thread.join(30)


def connect(port: int, sent: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=30)
    made.sendall(sent)
    return made


def is_cut(connection: socket.socket) -> bool:
    try:
        return connection.recv(1 << 16) == b""
    except ConnectionResetError:
        return True


def drip(connection: socket.socket, piece: bytes, until: Callable[[], bool]) -> float:
    """Send a piece repeatedly. Returns the seconds until the server cuts the connection."""
    started = time.monotonic()
    while not until():
        try:
            connection.sendall(piece)
        except OSError:
            break
        time.sleep(SECONDS / 5)
    return time.monotonic() - started


def late(seconds: float) -> Callable[[], bool]:
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() > deadline


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_five_hundred_half_open_connections_are_cut_and_others_are_answered(port: int, sent: bytes) -> None:
    held = [connect(port, sent) for _ in range(500)]
    try:
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=20).status_code == 200
        assert all(map(is_cut, held))
    finally:
        for connection in held:
            connection.close()


def test_headers_that_arrive_slowly_are_cut(port: int) -> None:
    with connect(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n") as connection:
        assert drip(connection, b"X-A: b\r\n", late(20)) < 10 * SECONDS


def test_a_second_request_whose_headers_arrive_slowly_is_cut(port: int) -> None:
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connect(port, whole) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert drip(connection, b"G", late(20)) < 10 * SECONDS


@pytest.mark.parametrize("piece", [b"", b" "])
def test_a_body_that_stalls_or_arrives_slowly_gets_408(api: Api, port: int, piece: bytes) -> None:
    head = (
        f"POST /api/v1/studies HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {api.token('member')}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    )
    with connect(port, head.encode()) as connection:
        connection.settimeout(0.05)
        answer, ended = b"", late(20)
        while not answer and not ended():
            try:
                answer = connection.recv(1 << 16)
            except TimeoutError:
                connection.sendall(piece)
                time.sleep(SECONDS / 5)
        assert answer.startswith(b"HTTP/1.1 408")
        connection.settimeout(10)
        while piece := connection.recv(1 << 16):
            answer += piece
        assert b"urn:cdka:problem:too-slow" in answer


def test_a_caller_that_does_not_read_its_answer_is_cut(port: int) -> None:
    # Plotly is larger than the kernel's socket buffers at both ends.
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.settimeout(30)
        connection.sendall(b"GET /static/plotly.min.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4)
        time.sleep(4 * SECONDS)
        taken = 0
        try:
            while piece := connection.recv(1 << 16):
                taken += len(piece)
        except ConnectionResetError:
            pass
        assert taken < 4_000_000


def test_a_slow_but_steady_caller_is_served(port: int) -> None:
    with connect(
        port, b"GET /static/plotly.min.js HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    ) as connection:
        taken = 0
        while piece := connection.recv(1 << 18):
            taken += len(piece)
            time.sleep(SECONDS / 10)
        assert taken > 4_000_000
