"""Try a use case again when another writer was in its way."""

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
    """Run a use case again after ``Contention`` (serialization failures, deadlocks, lock timeouts), with full jitter.

    Only for use cases of one transaction: what was rolled back is done anew, and nothing was done twice.

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
