"""Killed or suspended processes: no orphan keeps CDKA_HOME, no healthy lease expires, retries get one answer."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service.cli.processes import Server, StartFailed, free_port, lock_home
from service.paths import write_secret
from service.settings import Settings
from tests.conftest import Api, FakeClock

ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


CHILD = """
import time
from service.parent import end_with_parent
end_with_parent()
print("up", flush=True)
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys, threading, time
from service.parent import environment_of_child
def start():
    global child
    environment = environment_of_child(os.environ)
    child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], env=environment, stdout=subprocess.PIPE)
    child.stdout.readline()
# In a thread that ends: the child must not end with it.
thread = threading.Thread(target=start); thread.start(); thread.join()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_child_ends_with_its_killed_parent_but_not_with_the_thread_that_started_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(2.5)
    assert is_running(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not is_running(child), 10)


def test_a_second_server_cannot_use_the_same_home(tmp_path: Path) -> None:
    held = lock_home(tmp_path)
    with pytest.raises(
        StartFailed, match=rf"another server \(process {os.getpid()}\) uses .*: stop it, or set CDKA_HOME"
    ):
        lock_home(tmp_path)
    held.close()
    lock_home(tmp_path).close()


def test_a_server_that_was_killed_leaves_its_home_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from service.cli.processes import lock_home\n"
        "lock = lock_home(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(StartFailed, match=f"process {other.pid}"):
        lock_home(tmp_path)
    other.kill()
    other.wait()
    other.stdout.close()
    lock_home(tmp_path).close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_served_home_is_free_again_after_kill_9(tmp_path: Path) -> None:
    port = free_port(19300)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CDKA_")},
        "CDKA_HOME": str(tmp_path / "home"),
        "CDKA_PORT": str(port),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "service.cli", "serve", "--no-pool"]

    with ExitStack() as stack:
        _kill_and_start_again(stack, command, tmp_path, environment)


def _kill_and_start_again(stack: ExitStack, command: list[str], folder: Path, environment: dict[str, str]) -> None:
    def start() -> subprocess.Popen[str]:
        server = stack.enter_context(
            subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(server.kill)
        assert server.stdout is not None
        # At this point the API is still starting.
        assert server.stdout.readline().startswith("CDKA_HOME")
        return server

    first = start()
    second = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert second.returncode == 4
    assert f"another server (process {first.pid})" in second.stderr
    children = [int(pid) for pid in Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()]
    assert children
    first.kill()
    first.wait()
    until(lambda: not any(map(is_running, children)), 20)
    third = start()
    third.send_signal(signal.SIGTERM)
    third.wait(120)


# --- a suspended server


def test_a_suspended_server_expires_no_lease(api: Api, clock: FakeClock) -> None:
    """As under SIGSTOP: wall clock and monotonic time both advanced, but no runner could report."""
    api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    for _ in range(5):
        api.ctx.pulse()
        clock.advance(1)
    clock.advance(180)
    assert api.lease("other") is None
    assert api.report(lease, 0.5).status_code == 200
    for _ in range(20):
        api.ctx.pulse()
        clock.advance(1)
    assert api.report(lease).status_code == 200


def test_a_lease_expires_while_the_server_keeps_running(api: Api, clock: FakeClock) -> None:
    api.create(search={"trials": 1})
    assert api.lease() is not None
    for _ in range(62):
        api.ctx.pulse()
        clock.advance(1)
    assert api.lease("other") is not None


# --- retries that arrive at once


@pytest.mark.parametrize("what", ["team", "pause", "cancel", "retry", "token"])
def test_simultaneous_retries_get_the_same_answer(api: Api, what: str) -> None:
    study = api.create(search={"trials": 2, "retries": 0})
    path, body, role = {
        "team": ("/teams", {"name": "raced"}, "admin"),
        "token": ("/tokens", {"name": "raced", "role": "viewer"}, "admin"),
        "pause": (f"/studies/{study['id']}/pause", None, "member"),
        "cancel": (f"/studies/{study['id']}/cancel", None, "member"),
        "retry": ("", None, "member"),
    }[what]
    if what == "retry":
        lease = api.lease()
        assert lease is not None
        api.finish(lease, "failed", None, failure={"kind": "error", "message": "broken"})
        path = f"/trials/{lease['trial']['id']}/retry"
    api.token(role)
    answers: list[Any] = []

    def send() -> None:
        answers.append(api.call("POST", path, role, json=body, headers={"Idempotency-Key": f"raced-{what}"}))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {200, 201}, [a.text for a in answers]
    assert len({answer.text for answer in answers}) == 1


# --- what a viewer may not start


def test_a_viewer_cannot_download_from_the_hub(api: Api) -> None:
    body = {"model": {"path": "someone/some-model"}, "budget": {"lora_rank": 4}}
    answer = api.call("POST", "/predictions", "viewer", json=body)
    assert answer.status_code == 403
    assert "names models in the data directories" in answer.json()["detail"]
    assert api.call("POST", "/predictions", "viewer", json={**body, "model": {"path": "tiny-bert"}}).status_code == 200


# --- what a log shows


def test_the_admins_login_address_is_printed_on_terminals_alone(tmp_path: Path) -> None:
    write_secret(tmp_path / "admin-token", "cdka_" + "s" * 43)
    server = Server(Settings(home=tmp_path), with_pool=False)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert server.login_told(Terminal()).endswith("/login#token=cdka_" + "s" * 43)
    assert "cdka_s" not in server.login_told(io.StringIO())
    assert str(tmp_path / "admin-token") in server.login_told(io.StringIO())
