"""A cache of recently computed values whose keys hold a version."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, TypeVar

from cachetools import LRUCache

T = TypeVar("T")


class Recent:
    """The most recently used values by key. Keys hold a version, so values are never stale."""

    def __init__(self, most: int) -> None:
        self._values: LRUCache[Hashable, Any] = LRUCache(most)
        self._lock = Lock()

    def latest(self, key: Hashable, version: Hashable, make: Callable[[], T]) -> T:
        """The value of a version; it takes the place of another version's, so that large values are held once."""
        with self._lock:
            held = self._values.get(key)
            if held is not None and held[0] == version:
                found: T = held[1]
                return found
        made = make()
        with self._lock:
            self._values[key] = (version, made)
        return made

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value under the key, computed now if it is missing."""
        with self._lock:
            if key in self._values:
                found: T = self._values[key]
                return found
        made = make()
        with self._lock:
            self._values[key] = made
        return made
