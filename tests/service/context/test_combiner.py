"""Callers that wait together are served in one pass and in order, and every caller gets an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.context.combiner import Combiner, NotServed


class Counter:
    """Answers each item with ten times its value. Every batch waits until ``go`` is set."""

    def __init__(self, most_answers: int = 1000) -> None:
        self.batches: list[list[int]] = []
        self.started, self.go = threading.Event(), threading.Event()
        self.most_answers = most_answers

    def serve(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.started.set()
        self.go.wait(30)
        return [10 * item for item in items[: self.most_answers]]


def call_together(combiner: Combiner[int, int], counter: Counter, items: Sequence[int], patience: float = 30) -> list:
    """Call with the first item, and with the others while the first is being served; returns the futures."""
    pool = ThreadPoolExecutor(len(items))
    futures = [pool.submit(combiner.call, "study", items[0], counter.serve, patience)]
    assert counter.started.wait(10)
    for k, item in enumerate(items[1:], 1):
        futures.append(pool.submit(combiner.call, "study", item, counter.serve, patience))
        while len(combiner._lines["study"]) < k:
            time.sleep(0.001)
    pool.shutdown(wait=False)
    return futures


def test_all_waiting_callers_are_served_in_one_pass() -> None:
    combiner, counter = Combiner[int, int](most=256), Counter()
    futures = call_together(combiner, counter, range(100))
    counter.go.set()
    assert [f.result(10) for f in futures] == [10 * k for k in range(100)]
    assert counter.batches == [[0], list(range(1, 100))]
    assert combiner._lines == {}


def test_a_pass_may_answer_only_the_first_callers_and_the_queue_keeps_its_order() -> None:
    combiner, counter = Combiner[int, int](most=4), Counter(most_answers=2)
    futures = call_together(combiner, counter, range(8))
    counter.go.set()
    assert [f.result(10) for f in futures] == [10 * k for k in range(8)]
    assert counter.batches == [[0], [1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7], [7]]


def test_a_caller_that_times_out_leaves_the_queue() -> None:
    combiner, counter = Combiner[int, int](most=256), Counter()
    futures = call_together(combiner, counter, range(2))
    with pytest.raises(NotServed):
        combiner.call("study", 99, counter.serve, patience=0.01)
    counter.go.set()
    assert [f.result(10) for f in futures] == [0, 10]
    assert [99] not in counter.batches
    assert 99 not in counter.batches[1]


def test_callers_whose_patience_runs_out_during_slow_passes_are_not_served() -> None:
    """60 callers wait for passes of 0.05 s that answer one caller each. After 0.25 s a caller gets NotServed."""
    combiner = Combiner[int, int](most=256)
    waited: list[float] = []

    def serve(items: Sequence[int]) -> list[int]:
        time.sleep(0.05)
        return [items[0]]

    def caller(k: int) -> bool:
        began = time.monotonic()
        try:
            return combiner.call("study", k, serve, 0.25) == k
        except NotServed:
            waited.append(time.monotonic() - began)
            return False

    with ThreadPoolExecutor(60) as pool:
        served = sum(pool.map(caller, range(60)))
    assert 1 <= served < 60
    assert len(waited) == 60 - served
    # Patience and a few passes; all 60 passes take 3 s.
    assert max(waited) < 2
    assert combiner._lines == {}


def test_an_error_reaches_the_whole_batch_and_the_next_one_is_served() -> None:
    combiner, counter = Combiner[int, int](most=2), Counter()

    def serve(items: Sequence[int]) -> list[int]:
        if 1 in items:
            raise ValueError("no database")
        return counter.serve(items)

    pool = ThreadPoolExecutor(4)
    futures = [pool.submit(combiner.call, "study", 0, serve, 30.0)]
    assert counter.started.wait(10)
    for k in (1, 2, 3):
        futures.append(pool.submit(combiner.call, "study", k, serve, 30.0))
        while len(combiner._lines["study"]) < k:
            time.sleep(0.001)
    counter.go.set()
    assert futures[0].result(10) == 0
    for k in (1, 2):
        with pytest.raises(ValueError, match="no database"):
            futures[k].result(10)
    assert futures[3].result(10) == 30
    pool.shutdown()


def test_other_keys_do_not_wait() -> None:
    combiner, counter = Combiner[int, int](most=256), Counter()
    futures = call_together(combiner, counter, range(1))
    assert combiner.call("another study", 5, lambda items: [-i for i in items], 1.0) == -5
    counter.go.set()
    assert futures[0].result(10) == 0
