"""Rows that cannot be used: collected over all splits, then refused once, or dropped and counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from service.schemas.specs import BadRows

from ..failures import Rejected

# So many of a problem's rows, and of its values, are named.
MOST_ROWS = 3
MOST_VALUES = 10


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that cannot be used. ``number`` counts the rows of its source from 1; ``value`` may be shown."""

    number: int
    column: str
    problem: str
    value: str | None = None


@dataclass(slots=True)
class SplitFindings:
    """The bad rows of one split of ``rows`` rows, and what is to happen to them."""

    split: str
    rows: int
    policy: BadRows
    found: list[BadRow] = field(default_factory=list)

    @property
    def numbers(self) -> set[int]:
        """The bad rows' numbers."""
        return {bad.number for bad in self.found}

    def told(self) -> str:
        """Every problem with its number of rows, the first rows, and the first different values."""
        groups: dict[tuple[str, str], list[BadRow]] = {}
        for bad in sorted(self.found, key=lambda bad: bad.number):
            groups.setdefault((bad.column, bad.problem), []).append(bad)
        return "; ".join(_told(column, problem, rows) for (column, problem), rows in groups.items())


def _told(column: str, problem: str, rows: Sequence[BadRow]) -> str:
    numbers = sorted({bad.number for bad in rows})
    shown = ", ".join(map(str, numbers[:MOST_ROWS])) + (", ..." if len(numbers) > MOST_ROWS else "")
    values = list(dict.fromkeys(bad.value for bad in rows if bad.value is not None))
    names = ""
    if values:
        more = f" and {len(values) - MOST_VALUES} more" if len(values) > MOST_VALUES else ""
        names = f": {', '.join(values[:MOST_VALUES])}{more}"
    count = "1 row" if len(numbers) == 1 else f"{len(numbers)} rows"
    return f"column {column!r} {problem} in {count} ({shown}){names}"


def refuse(findings: Iterable[SplitFindings], hint: str = "") -> None:
    """Raise if a split that rejects bad rows has some.

    Raises:
        Rejected: it names split, column, problem, number of rows and the first of them, and says what to do.
    """
    bad = [f for f in findings if f.found and f.policy is not BadRows.DROP]
    if not bad:
        return
    told = " | ".join(f"{f.split} ({len(f.numbers)} of {f.rows} rows cannot be used): {f.told()}" for f in bad)
    raise Rejected(f"{told}. Correct the data, or set dataset.on_bad_row: drop to leave these rows out{hint}")
