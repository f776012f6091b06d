"""A study as a file: CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from ..context.context import Context
from ..db.predictions import Predictions
from ..db.studies import Studies
from ..db.trial_columns import TrialColumns
from ..db.trials import Trials
from ..domain.records import Study, Trial
from .comparison import compare

PAGE = 1000
COLUMNS = (
    *("number", "id", "phase", "candidate", "state", "method", "seed", "attempts", "parameters"),
    *("failure_kind", "failure_message", "artifact", "created_at", "started_at", "finished_at"),
)
_FIELDS = [f.name for f in fields(Trial)]


def trials_of(ctx: Context, study_id: str) -> Iterator[Trial]:
    """Every trial by number, a page at a time."""
    after = None
    while True:
        with ctx.db.read() as session:
            page = Trials(session).page(study_id, PAGE, after)
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].number


def study_of(ctx: Context, study_id: str, team_id: str | None) -> Study:
    """The study.

    Raises:
        NotFound: there is none in this team.
    """
    with ctx.db.read() as session:
        return Studies(session).get(study_id, team_id)


def as_csv(ctx: Context, study_id: str, team_id: str | None) -> Iterator[str]:
    """The trials of a study as CSV, in pieces.

    Parameters, metrics and resources have columns of their own: ``params.r1``, ``metrics.accuracy``,
    ``resources.seconds``. A cell that a spreadsheet would read as a formula gets an apostrophe in front.

    Raises:
        NotFound: there is no such study in this team.
    """
    study_of(ctx, study_id, team_id)
    names: set[str] = set()
    with ctx.db.read() as session:
        for params, metrics, resources in TrialColumns(session).measurements(study_id):
            names.update(_measured(params, metrics, resources))
    return _csv(ctx, study_id, [*COLUMNS, *sorted(names)])


def _measured(params: dict[str, Any], metrics: dict[str, Any], resources: dict[str, Any]) -> dict[str, Any]:
    found = {f"params.{name}": v for name, v in params.items() if isinstance(v, int | float | str)}
    found.update({f"metrics.{name}": v for name, v in metrics.items() if isinstance(v, int | float | str)})
    found.update({f"resources.{name}": v for name, v in resources.items() if isinstance(v, int | float | str)})
    return found


def _csv(ctx: Context, study_id: str, columns: list[str]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(columns)
    for k, trial in enumerate(trials_of(ctx, study_id)):
        row = {**_flat(trial), **_measured(trial.params, trial.metrics, trial.resources)}
        writer.writerow([spreadsheet_cell(row.get(name, "")) for name in columns])
        if k % PAGE == PAGE - 1:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def _flat(trial: Trial) -> dict[str, Any]:
    failure = trial.failure
    extra = {
        "failure_kind": failure.kind if failure else None,
        "failure_message": failure.message if failure else None,
    }
    return {name: extra[name] if name in extra else getattr(trial, name) for name in COLUMNS}


def spreadsheet_cell(value: Any) -> Any:
    """A value for CSV; text that a spreadsheet would read as a formula gets an apostrophe in front."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


def as_json(ctx: Context, study_id: str, team_id: str | None) -> Iterator[str]:
    """Study, predictions, comparison and every trial with its evaluations, as one JSON object, in pieces.

    Raises:
        NotFound: there is no such study in this team.
    """
    study = study_of(ctx, study_id, team_id)
    comparison = compare(ctx, study_id, team_id)
    with ctx.db.read() as session:
        predictions = Predictions(session).of_study(study_id)
    return _json(ctx, study, asdict(comparison), {k: [asdict(p) for p in v] for k, v in predictions.items()})


def _json(ctx: Context, study: Study, comparison: dict[str, Any], predictions: dict[str, Any]) -> Iterator[str]:
    head = {
        "id": study.id,
        "name": study.name,
        "state": study.state,
        "phase": study.phase,
        "spec": study.spec.model_dump(mode="json"),
        "plan": study.plan.model_dump(mode="json"),
        "inputs": None if study.inputs is None else study.inputs.model_dump(mode="json"),
        "predictions": predictions,
        "comparison": comparison,
    }
    yield json.dumps(head, default=str)[:-1] + ', "trials": ['
    # A piece for each page: the server hands every piece to another thread.
    found, between = trials_of(ctx, study.id), ""
    while page := list(islice(found, PAGE)):
        yield between + ", ".join(json.dumps(_record(trial), default=_plain) for trial in page)
        between = ", "
    yield "]}"


def _record(trial: Trial) -> dict[str, Any]:
    """What ``dataclasses.asdict`` gives, without its deep copies."""
    record = {name: getattr(trial, name) for name in _FIELDS}
    record["failure"] = None if trial.failure is None else asdict(trial.failure)
    return record


def _plain(value: Any) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)
