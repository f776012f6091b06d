"""Rate limits, counted in this process."""

from __future__ import annotations

import time

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from ..errors import TooMany

# Tokens have 256 random bits, so this limits noise, not guessing.
REFUSALS_A_MINUTE = 60
ALL_REFUSALS_A_MINUTE = 600


class RateLimits:
    """Limits the calls of one token and the invalid tokens of one address, in a moving window.

    Args:
        calls_a_minute: calls that one token may make; 0 is no limit. Workers are not counted.
        refusals_a_minute: invalid tokens of one address that get 401; further ones get 429.
        all_refusals_a_minute: the same for all addresses together.
    """

    def __init__(
        self,
        calls_a_minute: int,
        refusals_a_minute: int = REFUSALS_A_MINUTE,
        all_refusals_a_minute: int = ALL_REFUSALS_A_MINUTE,
    ) -> None:
        self._windows = MovingWindowRateLimiter(MemoryStorage())
        self._calls = RateLimitItemPerMinute(calls_a_minute) if calls_a_minute else None
        self._refusals = RateLimitItemPerMinute(refusals_a_minute)
        self._all_refusals = RateLimitItemPerMinute(all_refusals_a_minute)

    def count_call(self, token_id: str) -> None:
        """Count a call.

        Raises:
            TooMany: the token has used up its rate.
        """
        if self._calls is not None and not self._windows.hit(self._calls, "call", token_id):
            raise self._too_many(self._calls, "call", token_id)

    def count_refusal(self, address: str) -> None:
        """Count a request with an invalid token. Valid tokens are never limited here: many may share a proxy's address.

        Raises:
            TooMany: the address, or all together, have sent too many within the last minute.
        """
        if not self._windows.hit(self._refusals, "refusal", address):
            raise self._too_many(self._refusals, "refusal", address)
        if not self._windows.hit(self._all_refusals, "refusals"):
            raise self._too_many(self._all_refusals, "refusals")

    def _too_many(self, limit: RateLimitItem, *key: str) -> TooMany:
        reset = self._windows.get_window_stats(limit, *key).reset_time
        wait = max(1, int(reset - time.time()) + 1)
        return TooMany(f"more than {limit.amount} requests of this kind a minute; retry in {wait} s", retry_after=wait)
