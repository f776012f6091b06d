"""Renew a lease and deliver a trial's reports, without blocking a training step."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from service.errors import InputsChanged, LeaseLost, NotFound, ServiceError
from service.schemas.leases import DirectiveOut
from service.schemas.specs import Inputs, StopReason

_log = logging.getLogger(__name__)
# Most reports kept while the server is away; the oldest are dropped first.
MOST_BUFFERED = 1000
# Most pieces of output sent between two reports.
MOST_PIECES = 4
# Longest time between two attempts to reach the server.
LONGEST_WAIT = 5.0


class LeaseCalls(Protocol):
    """The calls of the SDK that a reporter uses."""

    def record_inputs(self, lease_id: str, inputs: Inputs) -> Inputs:
        """Record what the study's trials are trained on."""
        ...

    def report(
        self,
        lease_id: str,
        reports: list[tuple[int, dict[str, float]]],
        checkpoint: str | None = None,
        total_steps: int | None = None,
    ) -> DirectiveOut:
        """Send reports (none: a heartbeat)."""
        ...

    def append_log(self, lease_id: str, start: int, text: str) -> int:
        """Append to the attempt's log."""
        ...


class Output(Protocol):
    """A trial's output that was not sent yet."""

    def waiting(self) -> tuple[int, str]:
        """The next piece, and its position in the whole output."""
        ...

    def sent(self, upto: int) -> None:
        """Drop the output before a position."""
        ...


class Reporter:
    """A thread that sends reports as they come and heartbeats between them.

    ``stop_reason`` becomes the directive's reason when the trial is told to stop, or ``LOST`` when the lease is lost.
    ``known_checkpoint`` is the newest that the server has recorded. While the server cannot be reached, reports wait
    (coalesced by step) and training continues.
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
        self._total_steps: int | None = None
        self._checkpoint: str | None = None
        self._inputs: Inputs | None = None
        # Why the study does not take what this trial is trained on.
        self.refusal: str | None = None
        self.known_checkpoint: str | None = None
        self.stop_reason: StopReason | None = None
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Deliver a step's metrics; returns at once."""
        with self._lock:
            self._waiting.setdefault(step, {}).update(metrics)
            while len(self._waiting) > MOST_BUFFERED:
                self._waiting.pop(min(self._waiting))
        self._wake.set()

    def progress(self, step: int, total_steps: int) -> None:
        """Note that training has reached a step. The next heartbeat reports it, so a slow trial does not look hung."""
        self._step = max(self._step, step)
        self._total_steps = total_steps
        if self._inputs is not None:
            self._wake.set()

    @property
    def has_stepped(self) -> bool:
        """Whether training has made a step."""
        return self._step > 0

    def expect_inputs(self, inputs: Inputs) -> None:
        """Record the study's inputs once training has made a step."""
        self._inputs = inputs

    def note(self, text: str) -> None:
        """Add a note to the study's inputs, if they are not recorded yet."""
        if self._inputs is not None:
            self._inputs = self._inputs.model_copy(update={"notes": (*self._inputs.notes, text)})

    def checkpoint(self, url: str) -> None:
        """Report the URL of a complete checkpoint; returns at once."""
        with self._lock:
            self._checkpoint = url
        self._wake.set()

    @property
    def unsent_checkpoint(self) -> str | None:
        """The checkpoint that was not reported because the server is away."""
        return self._checkpoint

    @property
    def unsent_inputs(self) -> Inputs | None:
        """The inputs of a training that made a step, if they were not recorded because the server is away."""
        return self._inputs if self.has_stepped else None

    def close(self, timeout: float = 30.0) -> list[tuple[int, dict[str, float]]]:
        """Deliver waiting reports and stop; returns those that the server has not taken."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout)
        return sorted(self._waiting.items())

    def _run(self) -> None:
        # Send the first heartbeat at once, to learn of a cancelled study before the model is loaded.
        due = time.monotonic()
        while True:
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            if self.stop_reason is StopReason.LOST:
                return
            last_words = self._closed and self._output is not None and bool(self._output.waiting()[1])
            if self._waiting or self._checkpoint or self.unsent_inputs or last_words or time.monotonic() >= due:
                due = time.monotonic() + self._send()
            if self._closed and (not (self._waiting or self._checkpoint or self.unsent_inputs) or self._failures):
                return

    def _send_log(self) -> None:
        """Send the output with every report; unsent output goes with the next."""
        if self._output is None:
            return
        try:
            # Much output must not delay the heartbeat.
            for _ in range(MOST_PIECES):
                piece = self._output.waiting()
                if not piece[1]:
                    return
                self._output.sent(self._client.append_log(self._lease_id, *piece))
        except ServiceError as error:
            _log.debug("the log was not taken: %s", error.detail)

    def _send_inputs(self) -> None:
        """Record the inputs before anything that was made from them."""
        if (inputs := self.unsent_inputs) is None:
            return
        try:
            self._client.record_inputs(self._lease_id, inputs)
        except InputsChanged as error:
            self.refusal, self.stop_reason = error.detail, StopReason.STOPPED
        except ServiceError as error:
            if error.status != 422:
                raise
            _log.error("the server does not take the study's inputs: %s", error.detail)
        self._inputs = None

    def _send(self) -> float:
        """Send waiting reports; returns the seconds until the next heartbeat or attempt."""
        with self._lock:
            taken, self._waiting = self._waiting, {}
            checkpoint, self._checkpoint = self._checkpoint, None
        try:
            self._send_inputs()
            reached: dict[int, dict[str, float]] = {} if self._step < 0 else {self._step: {}}
            reports = sorted({**reached, **taken}.items())
            said = self._client.report(self._lease_id, reports, checkpoint, self._total_steps)
        except (LeaseLost, NotFound):
            self.stop_reason = StopReason.LOST
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
            self.stop_reason = _reason(said.reason)
        return self._heartbeat


def _reason(said: str | None) -> StopReason:
    try:
        return StopReason(said or StopReason.STOPPED)
    except ValueError:
        # A newer server may have further reasons.
        return StopReason.STOPPED
