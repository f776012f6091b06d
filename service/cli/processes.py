"""Start the API and the pool as processes and keep them running."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TextIO

from ..client import Client
from ..errors import ServiceError
from ..parent import command_of_child, environment_of_child
from ..paths import make_private
from ..settings import Settings

READY_TIMEOUT = 120.0
STOP_TIMEOUT = 30.0
LONGEST_PAUSE = 30.0
PORT_PATIENCE = 5.0


class StartFailed(ServiceError):
    """A process could not be started; the detail is the end of its log."""

    status, slug, title = 503, "start-failed", "The server could not be started"


@dataclass
class Process:
    """A child that is started again (with growing pauses) when it dies."""

    name: str
    arguments: list[str]
    environment: Mapping[str, str]
    log: Path
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _starts: int = field(default=0, init=False)
    _not_before: float = field(default=0.0, init=False)

    @property
    def pid(self) -> int | None:
        """The child's process id while it lives."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def start(self) -> None:
        """Start the child; what it prints goes to its log file."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                command_of_child(*self.arguments),
                env=environment_of_child(self.environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal reaches only us; we end our children in order.
                start_new_session=True,
            )
        self._starts += 1
        self._not_before = time.monotonic() + min(LONGEST_PAUSE, 0.5 * 2**self._starts)

    def revive(self) -> bool:
        """Start the child again if it has died and its pause is over; returns whether it did."""
        if self.pid is not None or time.monotonic() < self._not_before:
            return False
        self.start()
        return True

    def stop(self) -> None:
        """Ask the child to end; end it if it does not."""
        if self._child is None or self._child.poll() is not None:
            return
        self._child.terminate()
        try:
            self._child.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Server:
    """An embedded service: the API on SQLite and, unless left out, a pool on a local Ray."""

    def __init__(self, settings: Settings, *, with_pool: bool = True) -> None:
        self.settings = settings
        self._lock: IO[str] | None = None
        logs = settings.home / "logs"
        environment = child_environment(settings)
        self.api = Process("api", ["service.app", "serve", "--embedded"], environment, logs / "api.log")
        worker = {**environment, "CDKA_TOKEN_FILE": str(settings.home / "worker-token")}
        worker.pop("CDKA_TOKEN", None)
        self.pool = Process("pool", ["workers"], worker, logs / "pool.log") if with_pool else None

    @property
    def processes(self) -> list[Process]:
        """API and pool."""
        return [self.api] if self.pool is None else [self.api, self.pool]

    def start(self, say: Callable[[str], None] = print) -> None:
        """Start both and wait until the API answers; ``say`` takes remarks.

        Raises:
            StartFailed: it does not; the detail is the end of its log.
        """
        make_private(self.settings.home)
        self._lock = lock_home(self.settings.home)
        deadline = time.monotonic() + PORT_PATIENCE
        # The API of a server that was killed ends within a second or two.
        while port_is_taken(self.settings.host, self.settings.port) and time.monotonic() < deadline:
            time.sleep(0.2)
        if port_is_taken(self.settings.host, self.settings.port):
            self._lock.close()
            raise StartFailed(f"port {self.settings.port} is in use on {self.settings.host}; set CDKA_PORT to another")
        for root, held in self.settings.data_roots.holding_private():
            if held == self.settings.home:
                say(f"CDKA_HOME {held} lies in the data directory {root}; studies cannot read it")
        self.api.start()
        if self.pool is not None:
            self._wait_for_tokens()
            self.pool.start()
        deadline = time.monotonic() + READY_TIMEOUT
        with Client(self.settings.server_url, attempts=1) as client:
            while not client.ready():
                if self.api.pid is None or time.monotonic() > deadline:
                    self.stop()
                    raise StartFailed(f"the API did not start; the end of {self.api.log}:\n{self.api.tail()}")
                time.sleep(0.2)

    def _wait_for_tokens(self) -> None:
        token = self.settings.home / "worker-token"
        deadline = time.monotonic() + READY_TIMEOUT
        while not token.exists() and self.api.pid is not None and time.monotonic() < deadline:
            time.sleep(0.1)

    def supervise(self, stopping: threading.Event, say: Callable[[str], None]) -> None:
        """Restart processes that die, until ``stopping``."""
        while not stopping.wait(0.5):
            for process in self.processes:
                if process.revive():
                    say(f"{process.name} had died and was started again; see {process.log}")

    def stop(self) -> None:
        """End pool and API, in this order, so that runners can still give back their leases."""
        for process in reversed(self.processes):
            process.stop()
        if self._lock is not None:
            self._lock.close()

    def login_url(self) -> str:
        """The dashboard's address with the admin's token in its fragment, which browsers never send."""
        token = (self.settings.home / "admin-token").read_text().strip()
        return f"{self.settings.server_url}/login#token={token}"

    def login_told(self, output: TextIO) -> str:
        """How to open the dashboard, for a terminal or for a log that others may read: without the token there."""
        if output.isatty():
            return self.login_url()
        return f"{self.settings.server_url}/login (the token is in {self.settings.home / 'admin-token'})"


def lock_home(home: Path) -> IO[str]:
    """Hold a server's home until the file is closed or this process ends.

    Raises:
        StartFailed: another server holds it; says which.
    """
    # Opened for appending: the other's number must not be lost.
    lock = (home / "serve.lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        other = lock.read().strip()
        lock.close()
        raise StartFailed(
            f"another server (process {other or 'unknown'}) uses {home}: stop it, or set CDKA_HOME to another folder"
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def child_environment(settings: Settings) -> dict[str, str]:
    """Our environment with the settings said outright, so that children agree with us on every one."""
    return {
        **os.environ,
        "CDKA_HOME": str(settings.home),
        "CDKA_DATABASE_URL": settings.database_url,
        "CDKA_ARTIFACTS_URL": settings.artifacts_url,
        "CDKA_DATA_DIRS": os.pathsep.join(map(str, settings.data_dirs)),
        "CDKA_HOST": settings.host,
        "CDKA_PORT": str(settings.port),
        "CDKA_SERVER_URL": settings.server_url,
        "CDKA_LEASE_SECONDS": str(settings.lease_seconds),
    }


def port_is_taken(host: str, port: int) -> bool:
    """Whether somebody listens there already."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def free_port(preferred: int, host: str = "127.0.0.1") -> int:
    """``preferred`` if it is free, else some port that is."""
    if not port_is_taken(host, preferred):
        return preferred
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        if not port_is_taken(host, port):
            return port
