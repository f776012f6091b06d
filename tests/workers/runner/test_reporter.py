"""The reporter does not delay training steps, does not lose reports, and always receives a stop."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from service.errors import InvalidRequest, LeaseLost, Unavailable
from service.schemas.leases import DirectiveOut
from service.schemas.specs import StopReason
from workers.runner.reporter import MOST_BUFFERED, Reporter


class Server:
    """Accepts reports like the SDK's client. Raises ``error`` or stops with ``reason`` if they are set."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[int, dict[str, float]]]] = []
        self.error: Exception | None = None
        self.reason: str | None = None

    def report(
        self, lease_id: str, reports: Any, checkpoint: str | None = None, total_steps: int | None = None
    ) -> DirectiveOut:
        self.calls.append(list(reports))
        if self.error is not None:
            raise self.error
        directive = "continue" if self.reason is None else "stop"
        return DirectiveOut(directive=directive, reason=self.reason, expires_at=datetime.now(UTC))


def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def started(server: Server, heartbeat: float = 60.0) -> Reporter:
    reporter = Reporter(server, "lease", heartbeat)
    reporter.start()
    until(lambda: server.calls)  # the first heartbeat goes out at once
    return reporter


def test_reports_are_sent_at_once_with_heartbeats_between_them() -> None:
    server = Server()
    reporter = started(server, heartbeat=0.05)
    reporter.report(1, {"accuracy": 0.5})
    until(lambda: [(1, {"accuracy": 0.5})] in server.calls)
    until(lambda: server.calls.count([]) >= 3)
    reporter.close()


def test_reports_survive_an_outage_and_arrive_in_order() -> None:
    server = Server()
    reporter = started(server, heartbeat=0.05)
    server.error = Unavailable("away")
    began = time.monotonic()
    for step in range(1, 6):
        reporter.report(step, {"loss": float(step)})
    assert time.monotonic() - began < 0.05  # no call waited for the server
    until(lambda: len(server.calls) > 3)
    server.error = None
    until(lambda: not reporter._waiting)
    delivered = [r for call in server.calls[-3:] for r in call]
    assert [(s, {"loss": float(s)}) for s in range(1, 6)] == delivered[-5:]
    reporter.close()


def test_a_stop_directive_sets_the_stop_reason() -> None:
    server = Server()
    reporter = started(server)
    server.reason = "pruned"
    reporter.report(1, {"accuracy": 0.1})
    until(lambda: reporter.stop_reason == "pruned")
    reporter.close()


def test_a_lost_lease_stops_the_trial_and_the_reporter() -> None:
    server = Server()
    reporter = started(server)
    server.error = LeaseLost("another's")
    reporter.report(1, {"accuracy": 0.1})
    until(lambda: reporter.stop_reason is StopReason.LOST)
    calls = len(server.calls)
    reporter.report(2, {"accuracy": 0.2})
    reporter.close()
    assert len(server.calls) == calls


def test_a_rejected_report_is_dropped() -> None:
    server = Server()
    reporter = started(server)
    server.error = InvalidRequest("no")
    reporter.report(1, {"": 0.1})
    until(lambda: len(server.calls) == 2)
    server.error = None
    reporter.report(2, {"accuracy": 0.2})
    until(lambda: [(2, {"accuracy": 0.2})] in server.calls)
    reporter.close()


def test_the_buffer_is_bounded_and_keeps_the_newest() -> None:
    server = Server()
    server.error = Unavailable("away")
    reporter = Reporter(server, "lease", 60)
    for step in range(MOST_BUFFERED + 50):
        reporter.report(step, {"loss": 1.0})
    assert min(reporter._waiting) == 50
    assert max(reporter._waiting) == MOST_BUFFERED + 49


def test_undelivered_reports_are_returned_on_close() -> None:
    server = Server()
    reporter = started(server, heartbeat=0.05)
    server.error = Unavailable("away")
    reporter.report(7, {"accuracy": 0.7})
    assert reporter.close() == [(7, {"accuracy": 0.7})]


def test_closing_delivers_waiting_reports() -> None:
    server = Server()
    reporter = started(server)
    reporter.report(7, {"accuracy": 0.7})
    reporter.close()
    assert any((7, {"accuracy": 0.7}) in call for call in server.calls)
    assert threading.active_count() < 20


class Chatterbox:
    """A trial whose output never ends."""

    def waiting(self) -> tuple[int, str]:
        return 0, "on and on"

    def sent(self, upto: int) -> None:
        pass


def test_endless_output_does_not_delay_heartbeats_and_stops() -> None:
    calls: Counter[str] = Counter()

    class Server:
        def report(self, lease_id: str, reports: Any, checkpoint: Any = None, total_steps: Any = None) -> DirectiveOut:
            calls["report"] += 1
            stop = calls["report"] > 3
            return DirectiveOut(
                directive="stop" if stop else "continue",
                reason="pruned" if stop else None,
                expires_at=datetime(2026, 1, 1, tzinfo=UTC),
            )

        def append_log(self, lease_id: str, start: int, text: str) -> int:
            calls["log"] += 1
            time.sleep(0.005)
            return len(text)

    reporter = Reporter(Server(), "lease", 0.05, Chatterbox())
    reporter.start()
    deadline = time.monotonic() + 10
    while reporter.stop_reason is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reporter.stop_reason == "pruned"
    assert calls["log"] > 0
    reporter.close()
