"""Keeps a lease alive and delivers what its trial reports, without ever holding up a training step."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from service.errors import LeaseLost, NotFound, ServiceError
from service.schemas.leases import DirectiveOut

_log = logging.getLogger(__name__)
LOST = "lost"
# Reports kept while the server is away. Beyond it the oldest go: the newest decide.
MOST_BUFFERED = 1000
# Pieces of a trial's output that are sent between two reports.
MOST_PIECES = 4
# A server that is back is found within this time, however long it was away.
LONGEST_WAIT = 5.0


class LeaseCalls(Protocol):
    """What a reporter needs of the SDK."""

    def report(
        self, lease_id: str, reports: list[tuple[int, dict[str, float]]], checkpoint: str | None = None
    ) -> DirectiveOut:
        """Send reports; none is a heartbeat."""
        ...

    def append_log(self, lease_id: str, start: int, text: str) -> int:
        """Add to the attempt's log."""
        ...


class Output(Protocol):
    """What a trial has printed and nobody has been sent yet."""

    def waiting(self) -> tuple[int, str]:
        """The next piece, and its place in the whole."""
        ...

    def sent(self, upto: int) -> None:
        """Forget what lies before a place."""
        ...


class Reporter:
    """A thread that sends reports as they come and heartbeats between them.

    ``stop_reason`` becomes the directive's reason when the trial is to stop, or ``"lost"`` when the lease is another's.
    ``known_checkpoint`` is the newest that the server has taken note of.
    While the server cannot be reached, reports wait (coalesced by step) and training goes on.
    """

    def __init__(
        self, client: LeaseCalls, lease_id: str, heartbeat_seconds: float, output: Output | None = None
    ) -> None:
        self._client = client
        self._output = output
        self._lease_id = lease_id
        self._heartbeat = heartbeat_seconds
        self._waiting: dict[int, dict[str, float]] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._failures = 0
        self._step = -1
        self._checkpoint: str | None = None
        self.known_checkpoint: str | None = None
        self.stop_reason: str | None = None
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Have a step's metrics delivered; returns at once."""
        with self._lock:
            self._waiting.setdefault(step, {}).update(metrics)
            while len(self._waiting) > MOST_BUFFERED:
                self._waiting.pop(min(self._waiting))
        self._wake.set()

    def progress(self, step: int) -> None:
        """Note that training has reached a step; the next heartbeat says so: a slow trial is no hung one."""
        self._step = max(self._step, step)

    def checkpoint(self, url: str) -> None:
        """Have the server know where a complete checkpoint lies; returns at once."""
        with self._lock:
            self._checkpoint = url
        self._wake.set()

    @property
    def unsent_checkpoint(self) -> str | None:
        """The checkpoint that the server, being away, has not been told of."""
        return self._checkpoint

    def close(self, timeout: float = 30.0) -> list[tuple[int, dict[str, float]]]:
        """Deliver what waits and stop; returns what the server, being away, has not taken."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout)
        return sorted(self._waiting.items())

    def _run(self) -> None:
        # The first heartbeat goes out at once: a cancelled study is heard of before the model is loaded.
        due = time.monotonic()
        while True:
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            if self.stop_reason == LOST:
                return
            last_words = self._closed and self._output is not None and bool(self._output.waiting()[1])
            if self._waiting or self._checkpoint or last_words or time.monotonic() >= due:
                due = time.monotonic() + self._send()
            if self._closed and (not (self._waiting or self._checkpoint) or self._failures):
                return

    def _send_log(self) -> None:
        """Send what was printed, with every report; what does not arrive is sent with the next."""
        if self._output is None:
            return
        try:
            # However much a trial prints, its heartbeat goes on.
            for _ in range(MOST_PIECES):
                piece = self._output.waiting()
                if not piece[1]:
                    return
                self._output.sent(self._client.append_log(self._lease_id, *piece))
        except ServiceError as error:
            _log.debug("the log was not taken: %s", error.detail)

    def _send(self) -> float:
        """Send what waits; returns the seconds until the next heartbeat or try."""
        with self._lock:
            taken, self._waiting = self._waiting, {}
            checkpoint, self._checkpoint = self._checkpoint, None
        try:
            reached: dict[int, dict[str, float]] = {} if self._step < 0 else {self._step: {}}
            said = self._client.report(self._lease_id, sorted({**reached, **taken}.items()), checkpoint)
        except (LeaseLost, NotFound):
            self.stop_reason = LOST
            return self._heartbeat
        except ServiceError as error:
            self._failures += 1
            if error.status == 422:
                _log.error("the server refused a report, it is dropped: %s", error.detail)
                return self._heartbeat
            with self._lock:
                self._waiting = {**taken, **self._waiting}
                self._checkpoint = self._checkpoint or checkpoint
            return min(LONGEST_WAIT, self._heartbeat, 0.5 * 2.0 ** min(self._failures, 5))
        self._failures = 0
        self._send_log()
        self.known_checkpoint = checkpoint or self.known_checkpoint
        if said.directive == "stop":
            self.stop_reason = said.reason or "stopped"
        return self._heartbeat
