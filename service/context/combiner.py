"""Serve callers that wait for the same resource in one pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class NotServed(Exception):
    """The caller was not served in time."""


@dataclass(slots=True, eq=False)
class _Ticket(Generic[Item, Answer]):
    item: Item
    deadline: float
    wake: Event = field(default_factory=Event)
    leads: bool = False
    answers: list[Answer] = field(default_factory=list)
    error: BaseException | None = None


class Combiner(Generic[Item, Answer]):
    """Callers that arrive while others of their key are served wait; the first of them then serves all.

    Flat combining (Hendler, Incze, Shavit, Tzafrir, SPAA 2010): one thread works for all waiting callers, so
    shared work is done once and no caller queues for a lock. A leader serves one batch and passes the line on, so no
    caller works for others without end.

    Args:
        most: the largest batch.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        # A line exists while it has a leader.
        self._lines: dict[str, list[_Ticket[Item, Answer]]] = {}

    def call(
        self, key: str, item: Item, serve: Callable[[Sequence[Item]], Sequence[Answer]], patience: float
    ) -> Answer:
        """The answer to ``item``, served by this caller or by another one of the same ``key``.

        Args:
            key: what callers must share to be served together.
            item: what this caller asks.
            serve: answers a batch in order. It may answer fewer than it is given, at least one; the rest is served by
                the next leader. What it raises is raised to every caller of the batch.
            patience: seconds to wait for an answer. A call whose time is up while a batch that it is in is served
                waits for the end of that one pass.

        Raises:
            NotServed: others were served for ``patience`` seconds.
        """
        ticket: _Ticket[Item, Answer] = _Ticket(item, time.monotonic() + patience)
        with self._lock:
            ticket.leads = key not in self._lines
            line = self._lines.setdefault(key, [])
            line.append(ticket)
        if not ticket.leads and not ticket.wake.wait(patience):
            with self._lock:
                if ticket in line and not ticket.leads:
                    line.remove(ticket)
                    raise NotServed(key)
            ticket.wake.wait()
        if ticket.leads:
            self._lead(key, line, serve)
        if ticket.error is not None:
            raise ticket.error
        return ticket.answers[0]

    def _lead(
        self,
        key: str,
        line: list[_Ticket[Item, Answer]],
        serve: Callable[[Sequence[Item]], Sequence[Answer]],
    ) -> None:
        with self._lock:
            batch = line[: self._most]
            del line[: self._most]
        answers: Sequence[Answer] = ()
        try:
            answers = serve([ticket.item for ticket in batch])
            assert answers, "at least the leader is answered"
        except BaseException as error:
            for ticket in batch:
                ticket.error = error
        with self._lock:
            for ticket, answer in zip(batch, answers, strict=False):
                ticket.answers.append(answer)
            over = [t for t in batch if t.answers or t.error is not None]
            left, now = batch[len(over) :], time.monotonic()
            for ticket in left:
                if ticket.deadline <= now:
                    ticket.error = NotServed(key)
                    over.append(ticket)
            line[:0] = [t for t in left if t.error is None]
            if line:
                line[0].leads = True
                over.append(line[0])
            else:
                del self._lines[key]
            for ticket in over:
                ticket.wake.set()
