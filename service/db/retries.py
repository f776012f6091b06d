"""Retry a use case after a conflict with another writer."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ..errors import Contention

P = ParamSpec("P")
R = TypeVar("R")
ATTEMPTS = 5
FIRST_WAIT = 0.05
LONGEST_WAIT = 1.0


def retried(use_case: Callable[P, R]) -> Callable[P, R]:
    """Retry a use case after ``Contention`` (serialization failures, deadlocks, lock timeouts), with full jitter.

    Only for use cases of one transaction, which was rolled back.

    Raises:
        Contention: after the last attempt.
    """

    @functools.wraps(use_case)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        for attempt in range(1, ATTEMPTS):
            try:
                return use_case(*args, **kwargs)
            except Contention:
                time.sleep(random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)))
        return use_case(*args, **kwargs)

    return wrapped
