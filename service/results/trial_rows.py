"""Trials as flat rows, for filters, tables and charts: a name and a value for everything that one compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..context.context import Context
from ..db.trial_columns import TrialColumns
from ..db.trials import Trials
from ..domain.records import Study
from ..domain.states import TrialPhase
from ..search.coordinates import method_of
from .comparison import searched
from .trial_filter import parse

Row = Mapping[str, Any]
# Filters of a version of a study whose rows are kept.
_MOST_KEPT = 8
_CONFIRMED = frozenset({TrialPhase.CONFIRMATION})


@dataclass(frozen=True, slots=True)
class TrialRows:
    """A study's trials by number, and the names that they have values for."""

    rows: list[dict[str, Any]]
    names: frozenset[str]
    # Table and charts of one page ask for the same.
    _fitting: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def where(self, text: str | None) -> list[dict[str, Any]]:
        """The rows that an expression describes; all without one.

        Raises:
            InvalidRequest: the expression cannot be read, or names what no trial has.
        """
        if not text or not text.strip():
            return self.rows
        # Requests share the rows of a version; another may clear what is kept at any time.
        found = self._fitting.get(text)
        if found is None:
            test = parse(text, self.names)
            found = [row for row in self.rows if test(row)]
            if len(self._fitting) >= _MOST_KEPT:
                self._fitting.clear()
            self._fitting[text] = found
        return found


def rows_of(ctx: Context, study: Study) -> TrialRows:
    """The rows of a study; those of the search come from its history in memory."""
    return ctx.rows.latest(study.id, study.version, lambda: _rows(ctx, study))


def _rows(ctx: Context, study: Study) -> TrialRows:
    rows: list[dict[str, Any]] = []
    seed = study.spec.search.seed
    with ctx.db.read() as session:
        others = Trials(session).outside_history(study.id)
        named = TrialColumns(session).search_candidates(study.id)
    for t in searched(ctx, study.id):
        row = {"number": t.number, "phase": TrialPhase.SEARCH, "state": t.state, "method": method_of(t.params)}
        rows.append(
            {
                **t.params,
                **t.metrics,
                **row,
                "seed": seed,
                "failure": t.failure,
                "candidate": named.get(t.number),
                "curve": t.curve,
            }
        )
    for o in others:
        row = {"number": o.number, "phase": o.phase, "state": o.state, "method": o.method, "seed": o.seed}
        failure = None if o.failure is None else o.failure.kind
        extra = {"failure": failure, "candidate": o.candidate}
        rows.append({**o.params, **o.metrics, **row, **extra, "curve": tuple(o.curve)})
    rows.sort(key=lambda row: row["number"])
    names: set[str] = {"number", "phase", "state", "method", "seed", "failure", "candidate", *_known(study)}
    for row in rows:
        names.update(row)
    return TrialRows(rows, frozenset(names - {"curve"}))


def _known(study: Study) -> list[str]:
    """What the trials of a study will have, so that a filter may name it before there are any."""
    space = study.spec.search_space
    sizes = [f"{g}.{s}" for g in study.plan.groups for s in ("r1", "r2", "r")] or ["r1", "r2", "r"]
    return [*sizes, *space.parameters(), study.spec.objective.metric]


def split_of(row: Row) -> str:
    """The split that a row's metrics were measured on."""
    return "test" if row["phase"] in _CONFIRMED else "validation"


def numeric(rows: Sequence[Row], name: str) -> bool:
    """Whether every value under a name is a number."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def ordered(rows: Sequence[dict[str, Any]], name: str, *, descending: bool) -> list[dict[str, Any]]:
    """Rows by the value under a name, then by number; those without one come last."""
    having = [row for row in rows if row.get(name) is not None]
    key: Callable[[Row], Any] = (lambda r: r[name]) if numeric(having, name) else (lambda r: str(r[name]))
    having.sort(key=lambda row: row["number"])
    having.sort(key=key, reverse=descending)
    return having + [row for row in rows if row.get(name) is None]
