"""The interface of what :mod:`benchmarks.search` compares, without any library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

METRIC = "accuracy"


class Next(Enum):
    """What becomes of a trial after an evaluation that is not its last."""

    CONTINUE = auto()
    STOP = auto()
    WAIT = auto()


@dataclass(frozen=True, slots=True)
class Space:
    """The space of a recorded table: structures with their r, alphas and the range of learning rates."""

    structures: Mapping[tuple[int, int], int]
    alphas: Sequence[int]
    rates: tuple[float, float]
    epochs: int
    start: Sequence[Mapping[str, Any]]


class Searcher(Protocol):
    """A search, asked and told. Numbers are those of trials, from 0 on."""

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """The next trial to run, new or continued; ``None`` while there is none."""
        ...

    def tell(self, number: int, value: float, *, last: bool) -> Next:
        """An evaluation of a running trial."""
        ...

    def shortlist(self, count: int) -> list[int]:
        """The trials that a recheck would repeat; only the service's searchers have one."""
        ...

    def chosen(self) -> int | None:
        """The trial that would win if the search ended now."""
        ...


Make = Callable[[Space, int, int], Searcher]
