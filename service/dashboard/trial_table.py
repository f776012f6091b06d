"""A page of a study's trials: filtered, sorted, and described by its address."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from ..context.context import Context
from ..db.trials import Trials
from ..domain.records import Study, Trial, TrialCounts
from ..domain.states import TrialPhase, TrialState
from ..domain.structure import pairs_in
from ..domain.study_spec import Direction
from ..results.comparison import searched

SHOWN = 50
SORTS = (("newest", "newest"), ("oldest", "oldest"), ("best", "best value"))


@dataclass(frozen=True, slots=True)
class Query:
    """What a reader asked for; what is no such value is left out."""

    state: TrialState | None = None
    phase: TrialPhase | None = None
    r1: int | None = None
    r2: int | None = None
    sort: str = "newest"
    page: int = 1

    @classmethod
    def of(cls, given: dict[str, str]) -> Query:
        """From the parameters of an address."""
        state, phase = given.get("state", ""), given.get("phase", "")
        sort = given.get("sort", "")
        return cls(
            TrialState(state) if state in set(TrialState) else None,
            TrialPhase(phase) if phase in set(TrialPhase) else None,
            _number(given.get("r1")),
            _number(given.get("r2")),
            sort if sort in dict(SORTS) else "newest",
            _number(given.get("page")) or 1,
        )

    def within(self, total: int) -> Query:
        """The last page instead of one beyond it."""
        return replace(self, page=min(self.page, max(1, math.ceil(total / SHOWN))))

    def address(self, page: int) -> str:
        """The parameters of an address of another page."""
        named = {
            "state": self.state,
            "phase": self.phase,
            "r1": self.r1,
            "r2": self.r2,
            "sort": self.sort,
            "page": page,
        }
        default = {"sort": "newest", "page": 1}
        return urlencode({k: v for k, v in named.items() if v is not None and v != default.get(k)})


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 7 and int(text) > 0 else None


@dataclass(frozen=True, slots=True)
class TrialTable:
    """One page of trials, with the addresses of others."""

    query: Query
    trials: list[Trial]
    total: int

    @property
    def pages(self) -> int:
        """How many there are."""
        return max(1, math.ceil(self.total / SHOWN))

    @property
    def is_filtered(self) -> bool:
        """Whether some trials are left out."""
        return any(v is not None for v in (self.query.state, self.query.phase, self.query.r1, self.query.r2))

    @property
    def said(self) -> str:
        """Which trials these are."""
        first = (self.query.page - 1) * SHOWN + 1
        return f"{first:,} to {first + len(self.trials) - 1:,} of {self.total:,}."

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


def trial_table(ctx: Context, study: Study, counts: TrialCounts, query: Query) -> TrialTable:
    """The page that a reader asked for. Structures and values are those of the search, from its history in memory."""
    if query.r1 is None and query.r2 is None and query.sort != "best":
        total = sum(
            n for (phase, state), n in counts.items() if query.phase in (None, phase) and query.state in (None, state)
        )
        query = query.within(total)
        with ctx.db.read() as session:
            found = Trials(session).slice(
                study.id,
                SHOWN,
                (query.page - 1) * SHOWN,
                query.state,
                query.phase,
                descending=query.sort == "newest",
            )
        return TrialTable(query, found, total)
    metric, maximise = study.spec.objective.metric, study.spec.objective.direction is Direction.MAXIMIZE
    fitting = [
        t
        for t in searched(ctx, study.id)
        if query.phase in (None, TrialPhase.SEARCH)
        and query.state in (None, t.state)
        and any(query.r1 in (None, r1) and query.r2 in (None, r2) for r1, r2 in pairs_in(t.params))
    ]
    if query.sort == "best":
        fitting = [t for t in fitting if metric in t.metrics]
        fitting.sort(key=lambda t: (-t.metrics[metric] if maximise else t.metrics[metric], t.number))
    elif query.sort == "newest":
        fitting.reverse()
    query = query.within(len(fitting))
    numbers = [t.number for t in fitting[(query.page - 1) * SHOWN : query.page * SHOWN]]
    with ctx.db.read() as session:
        by_number = {t.number: t for t in Trials(session).numbered_all(study.id, numbers)}
    return TrialTable(query, [by_number[n] for n in numbers if n in by_number], len(fitting))
