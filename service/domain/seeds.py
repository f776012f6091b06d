"""Training seeds of a study's trials. No two purposes share a seed, and all candidates of one purpose share theirs.

From the study's ``search.seed``: itself for the search and the tuning of learning rates, the following 100 for the
confirmation, and every thousandth after it for repetitions of a configuration in the search.
"""

from __future__ import annotations

_STEP = 1000


def repeated(seed: int, repetition: int) -> int:
    """The seed of a search trial that repeats a configuration; repetition 0 is the first run."""
    return seed + _STEP * repetition


def confirmation(seed: int, count: int) -> list[int]:
    """The seeds of the confirmation."""
    return [seed + 1 + k for k in range(count)]
