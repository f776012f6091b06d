"""Interleaved CPU timing: every contender runs in every round, so that noise affects all of them equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def medians(contenders: Mapping[str, Callable[[], object]], rounds: int, inner: int) -> dict[str, float]:
    """Median CPU seconds of one call of each contender, over ``rounds`` rounds of ``inner`` calls each."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(rounds):
        for name, call in contenders.items():
            started = time.process_time()
            for _ in range(inner):
                call()
            times[name].append((time.process_time() - started) / inner)
    return {name: statistics.median(values) for name, values in times.items()}
