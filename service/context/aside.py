"""Run work that grows with what a caller sends in another process, with limits of time and memory.

A model's config can ask for any number of layers, and a budget for any number of configurations. In the server's own
process such work would hold its interpreter, and could not be ended.
"""

from __future__ import annotations

import logging
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from select import select
from typing import IO, Any, Protocol, TypeVar

from ..errors import InvalidRequest, Overloaded

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
_LENGTH = struct.Struct(">Q")
_START_SECONDS = 120.0
GIB = 1 << 30


class Aside(Protocol):
    """Calls a function of a module with arguments that pickle."""

    def __call__(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """The function's answer.

        Raises:
            InvalidRequest: it takes more time or memory than it may.
            Overloaded: every process is busy with others.
        """
        ...


def in_this_process(function: Callable[..., Answer], *arguments: Any) -> Answer:
    """Without limits."""
    return function(*arguments)


class Processes:
    """Calls functions in up to ``count`` processes, which are kept.

    Args:
        count: how many calls may run at once.
        seconds: how long a call may take, and how long it may wait for a process.
        memory_bytes: what a process may allocate.
        modules: what a process imports before its first call.
    """

    def __init__(
        self, modules: Sequence[str] = (), count: int = 2, seconds: float = 60.0, memory_bytes: int = 3 * GIB
    ) -> None:
        self._modules = modules
        self._free = threading.Semaphore(count)
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._seconds = seconds
        self._memory = memory_bytes
        self._closed = False

    def start(self) -> None:
        """Start a process, so that the first call need not wait for its imports."""
        self._idle.append(_Child(self._memory, self._modules))

    def __call__(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """See :class:`Aside`."""
        if not self._free.acquire(timeout=self._seconds):
            raise Overloaded("every process that reads models is busy; retry later")
        try:
            return self._call(function, arguments)
        finally:
            self._free.release()

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._closed = True
            children, self._idle = self._idle, []
        for child in children:
            child.end()

    def _call(self, function: Callable[..., Answer], arguments: tuple[Any, ...]) -> Answer:
        with self._lock:
            child = self._idle.pop() if self._idle else None
        if child is not None and not child.is_alive:
            child.end()
            child = None
        if child is None:
            child = _Child(self._memory, self._modules)
        try:
            answered, value = child.call(function, arguments, self._seconds)
        except TimeoutError:
            child.end()
            raise InvalidRequest(
                f"it takes more than {self._seconds:.0f} s to count this model's layers and configurations: its config "
                "or the budget asks for too many"
            ) from None
        except (EOFError, OSError, MemoryError) as error:
            child.end()
            _log.warning("a process that reads models ended: %s", error or type(error).__name__)
            raise InvalidRequest(
                f"it takes more than {self._memory / GIB:.0f} GiB of memory to count this model's layers and "
                "configurations: its config or the budget asks for too many"
            ) from None
        except BaseException:
            child.end()
            raise
        with self._lock:
            if not self._closed:
                self._idle.append(child)
                child = None
        if child is not None:
            child.end()
        if not answered:
            raise value
        return value  # type: ignore[no-any-return]


class _Child:
    """One process, and the pipes to it."""

    def __init__(self, memory_bytes: int, modules: Sequence[str]) -> None:
        command = [sys.executable, "-m", f"{__package__}.answering", str(memory_bytes), *modules]
        # The package may not be installed, but only lie in the path of this process.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        self._started = False

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> tuple[bool, Any]:
        """Whether it answered or raised, and what."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        if not self._started:
            read_message(self._process.stdout, time.monotonic() + _START_SECONDS)
            self._started, deadline = True, time.monotonic() + seconds
        write_message(self._process.stdin, (function, arguments))
        answered, value = read_message(self._process.stdout, deadline)
        if not answered and isinstance(value, MemoryError):
            raise value
        return answered, value

    def end(self) -> None:
        """End it at once."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    _log.debug("a pipe was closed already")
        self._process.wait()


def write_message(stream: IO[bytes], message: Any) -> None:
    """Send a message."""
    content = pickle.dumps(message)
    stream.write(_LENGTH.pack(len(content)) + content)
    stream.flush()


def read_message(stream: IO[bytes], deadline: float | None = None) -> Any:
    """The next message.

    Raises:
        EOFError: the other side ended.
        TimeoutError: the deadline passed.
    """
    (length,) = _LENGTH.unpack(_bytes(stream, _LENGTH.size, deadline))
    return pickle.loads(_bytes(stream, length, deadline))  # noqa: S301  # of our own process, over its own pipe


def _bytes(stream: IO[bytes], count: int, deadline: float | None) -> bytes:
    found = bytearray()
    while len(found) < count:
        if deadline is not None and not select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        # Not through the buffer, of which select knows nothing.
        piece = os.read(stream.fileno(), min(count - len(found), 1 << 20))
        if not piece:
            raise EOFError("it ended")
        found += piece
    return bytes(found)
