"""Retry a use case after a conflict with another writer."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from ..errors import Contention

P = ParamSpec("P")
R = TypeVar("R")
ATTEMPTS = 5
FIRST_WAIT = 0.1
LONGEST_WAIT = 1.0


def retried(use_case: Callable[P, R]) -> Callable[P, R]:
    """Retry a use case after ``Contention`` (serialization failures, deadlocks, lock timeouts), with full jitter.

    Only for use cases of a single transaction: it was rolled back, so a retry is safe.

    Raises:
        Contention: after the last attempt.
    """
    return retry(
        retry=retry_if_exception_type(Contention),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
        reraise=True,
    )(use_case)
