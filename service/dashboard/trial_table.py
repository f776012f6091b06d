"""A page of a study's trials: filtered, sorted, and described by its address."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev
from typing import Any
from urllib.parse import urlencode

from ..context.context import Context
from ..db.trials import Trials
from ..domain.records import Study, Trial, TrialCounts
from ..domain.search_space import OPTIONAL
from ..domain.states import TrialPhase, TrialState
from ..domain.structure import pairs_in, sizes_told
from ..domain.study_spec import Direction
from ..errors import InvalidRequest
from ..results.trial_filter import LONGEST
from ..results.trial_rows import Row, TrialRows, ordered, rows_of, split_of

SHOWN = 50
# Of what a trial has beside parameters and metrics, what the table can show.
_FIXED = ("number", "phase", "state", "method", "structure", "parameters", "seed", "seconds", "attempts", "started")
_MOST_COLUMNS = 30


@dataclass(frozen=True, slots=True)
class Query:
    """What a reader asked for; what is no such value is left out."""

    state: TrialState | None = None
    phase: TrialPhase | None = None
    r1: int | None = None
    r2: int | None = None
    where: str = ""
    sort: str = "newest"
    columns: tuple[str, ...] = ()
    group: bool = False
    page: int = 1

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Query:
        """From the parameters of an address."""
        state, phase = given.get("state", ""), given.get("phase", "")
        columns = dict.fromkeys(name.strip() for name in given.get("columns", "").split(",") if name.strip())
        return cls(
            TrialState(state) if state in set(TrialState) else None,
            TrialPhase(phase) if phase in set(TrialPhase) else None,
            _number(given.get("r1")),
            _number(given.get("r2")),
            given.get("where", "").strip()[: LONGEST + 1],
            given.get("sort", "").strip()[:100] or "newest",
            tuple(columns)[:_MOST_COLUMNS],
            given.get("group") == "1",
            _number(given.get("page")) or 1,
        )

    def within(self, total: int) -> Query:
        """The last page instead of one beyond it."""
        return replace(self, page=min(self.page, max(1, math.ceil(total / SHOWN))))

    def address(self, page: int = 1, **changed: Any) -> str:
        """The parameters of the address of another page, sorted or filtered otherwise if so asked."""
        named = {
            "state": self.state,
            "phase": self.phase,
            "r1": self.r1,
            "r2": self.r2,
            "where": self.where or None,
            "sort": self.sort,
            "columns": ",".join(self.columns) or None,
            "group": "1" if self.group else None,
            "page": page,
        } | changed
        default = {"sort": "newest", "page": 1}
        return urlencode({k: v for k, v in named.items() if v is not None and v != default.get(k)})

    @property
    def needs_rows(self) -> bool:
        """Whether the trials must be looked at one by one."""
        plain = self.r1 is None and self.r2 is None and not self.where and not self.group
        return not plain or self.sort not in ("newest", "oldest", "number", "-number")


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 7 and int(text) > 0 else None


@dataclass(frozen=True, slots=True)
class Group:
    """Trials that differ in nothing but the seed."""

    params: dict[str, Any]
    method: str
    split: str
    values: list[float]
    numbers: list[int]

    @property
    def mean(self) -> float:
        """Of the objective."""
        return mean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def where(self) -> str:
        """The expression for its trials."""
        return f"number in ({', '.join(map(str, self.numbers[:40]))})"


@dataclass(frozen=True, slots=True)
class TrialTable:
    """One page of trials, with the addresses of others."""

    query: Query
    trials: list[Trial]
    total: int
    columns: list[str] = field(default_factory=list)
    available: list[str] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    # Why the filter was not applied.
    fault: str = ""

    @property
    def pages(self) -> int:
        """How many there are."""
        return max(1, math.ceil(self.total / SHOWN))

    @property
    def is_filtered(self) -> bool:
        """Whether some trials are left out."""
        q = self.query
        return bool(q.where) or any(v is not None for v in (q.state, q.phase, q.r1, q.r2))

    @property
    def said(self) -> str:
        """Which trials these are."""
        first = (self.query.page - 1) * SHOWN + 1
        what = " configurations" if self.query.group else ""
        return f"{first:,} to {first + len(self.trials or self.groups) - 1:,} of {self.total:,}{what}."

    @property
    def links(self) -> list[tuple[str, str]]:
        """Labels and addresses of other pages."""
        page, last = self.query.page, self.pages
        wanted = {"first": 1, "previous": page - 1, "next": page + 1, "last": last}
        ends = {"first": page > 2, "last": page < last - 1}
        return [
            (label, self.query.address(k))
            for label, k in wanted.items()
            if 1 <= k <= last and k != page and ends.get(label, True)
        ]

    def sorted_by(self, column: str) -> str:
        """The address of the table sorted by a column; by the same one again, the other way round."""
        turned = {f"-{column}": column, column: f"-{column}"}
        return self.query.address(sort=turned.get(self.query.sort, f"-{column}"))

    def order_of(self, column: str) -> str:
        """How the table is sorted by a column, as ``aria-sort`` has it; empty if it is not."""
        named = {column: "ascending", f"-{column}": "descending"}
        if column == "number":
            named |= {"oldest": "ascending", "newest": "descending"}
        return named.get(self.query.sort, "")


def trial_table(ctx: Context, study: Study, counts: TrialCounts, query: Query) -> TrialTable:
    """The page that a reader asked for. A filter that cannot be read is said, and not applied."""
    found = rows_of(ctx, study) if query.needs_rows or query.columns else None
    columns, available = columns_of(study, query, found)
    if found is None or not query.needs_rows:
        total = sum(
            n for (phase, state), n in counts.items() if query.phase in (None, phase) and query.state in (None, state)
        )
        query = query.within(total)
        with ctx.db.read() as session:
            trials = Trials(session).slice(
                study.id,
                SHOWN,
                (query.page - 1) * SHOWN,
                query.state,
                query.phase,
                descending=query.sort in ("newest", "-number"),
            )
        return TrialTable(query, trials, total, columns, available)
    fault = ""
    try:
        fitting = fitting_rows(study, found, query)
    except InvalidRequest as error:
        fitting, fault = fitting_rows(study, found, replace(query, where="")), error.faults[0].detail
    if query.group:
        groups = _grouped(study, fitting)
        query = query.within(len(groups))
        shown = groups[(query.page - 1) * SHOWN : query.page * SHOWN]
        return TrialTable(query, [], len(groups), columns, available, shown, fault)
    query = query.within(len(fitting))
    numbers = [row["number"] for row in fitting[(query.page - 1) * SHOWN : query.page * SHOWN]]
    with ctx.db.read() as session:
        by_number = {t.number: t for t in Trials(session).numbered_all(study.id, numbers)}
    trials = [by_number[n] for n in numbers if n in by_number]
    return TrialTable(query, trials, len(fitting), columns, available, [], fault)


def fitting_rows(study: Study, found: TrialRows, query: Query) -> list[dict[str, Any]]:
    """The rows that a query asks for, in its order.

    Raises:
        InvalidRequest: the filter cannot be read.
    """
    rows = [
        row
        for row in found.where(query.where)
        if query.phase in (None, row["phase"])
        and query.state in (None, row["state"])
        and ((query.r1 is None and query.r2 is None) or _has_pair(row, query.r1, query.r2))
    ]
    metric, maximise = study.spec.objective.metric, study.spec.objective.direction is Direction.MAXIMIZE
    if query.sort == "best":
        # Of the search alone: values on the test split are of another kind.
        mine = [row for row in rows if split_of(row) == "validation" and row.get(metric) is not None]
        return ordered(mine, metric, descending=maximise)
    if query.sort in ("newest", "oldest"):
        return rows[::-1] if query.sort == "newest" else rows
    name, descending = query.sort.removeprefix("-"), query.sort.startswith("-")
    return ordered(rows, name, descending=descending) if name in found.names else rows[::-1]


def _has_pair(row: Row, r1: int | None, r2: int | None) -> bool:
    return any(r1 in (None, a) and r2 in (None, b) for a, b in pairs_in(row))


def _grouped(study: Study, rows: Sequence[Row]) -> list[Group]:
    """Completed trials by all but the seed, best mean first."""
    metric = study.spec.objective.metric
    present = {n for row in rows for n in row}
    names = [n for n in _parameters(study) if n in present]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["state"] is TrialState.COMPLETED and isinstance(row.get(metric), int | float):
            key = (split_of(row), row["method"], tuple((n, row.get(n)) for n in names))
            groups.setdefault(key, []).append(row)
    found = [
        Group(
            {n: v for n, v in params if v is not None},
            method,
            split,
            [float(r[metric]) for r in own],
            [r["number"] for r in own],
        )
        for (split, method, params), own in groups.items()
    ]
    sign = -1 if study.spec.objective.direction is Direction.MAXIMIZE else 1
    return sorted(found, key=lambda g: (g.split != "validation", sign * g.mean))


def _parameters(study: Study) -> list[str]:
    """The names of everything that makes a configuration, whatever its method."""
    sizes = [f"{g}.{s}" for g in study.plan.groups for s in ("r1", "r2", "r")]
    return [*sizes, "r1", "r2", "r", "factor", "alpha", "learning_rate", *OPTIONAL]


def columns_of(study: Study, query: Query, found: TrialRows | None) -> tuple[list[str], list[str]]:
    """The columns of the table, and all that may be chosen."""
    metric = study.spec.objective.metric
    searched = [name for name in OPTIONAL if name in study.spec.search_space.parameters()]
    usual = ["number", "phase", "state", "method", "structure", "alpha", "learning_rate", *searched]
    usual += ["parameters", "seed", metric, "seconds"]
    others = set() if found is None else set(found.names) - {"curve"}
    available = list(dict.fromkeys([*usual, *_FIXED, *sorted(others)]))
    chosen = [name for name in query.columns if name in available]
    return chosen or usual, available


def cell(trial: Trial, column: str) -> Any:
    """What a column shows of a trial, of those that are plain values."""
    fixed = {
        "number": trial.number,
        "phase": trial.phase,
        "state": trial.state,
        "candidate": trial.candidate,
        "method": trial.method,
        "structure": sizes_told(trial.method, trial.params),
        "parameters": trial.parameters,
        "seed": trial.seed,
        "seconds": trial.resources.get("seconds"),
        "attempts": trial.attempts,
        "started": trial.started_at,
        "failure": None if trial.failure is None else trial.failure.kind,
    }
    if column in fixed:
        return fixed[column]
    return trial.params.get(column, trial.metrics.get(column))
