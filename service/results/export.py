"""A study as a file: CSV, JSON, or a database that Optuna opens."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna

from ..context.context import Context
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.records import Study, Trial
from ..domain.states import TrialPhase, TrialState
from ..domain.study_spec import Direction
from ..search.coordinates import distributions
from .comparison import compare

PAGE = 1000
COLUMNS = (
    *("number", "id", "phase", "candidate", "state", "method", "seed", "attempts", "parameters"),
    *("failure_kind", "failure_message", "artifact", "created_at", "started_at", "finished_at"),
)

_STATES = {
    TrialState.COMPLETED: optuna.trial.TrialState.COMPLETE,
    TrialState.PRUNED: optuna.trial.TrialState.PRUNED,
    TrialState.QUEUED: optuna.trial.TrialState.WAITING,
    TrialState.WAITING: optuna.trial.TrialState.RUNNING,  # held at a rung, it may be continued
    TrialState.RUNNING: optuna.trial.TrialState.RUNNING,
}


def _trials(ctx: Context, study_id: str) -> Iterator[Trial]:
    after = None
    while True:
        with ctx.db.read() as session:
            page = Trials(session).page(study_id, PAGE, after)
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].number


def _study(ctx: Context, study_id: str, team_id: str | None) -> Study:
    with ctx.db.read() as session:
        return Studies(session).get(study_id, team_id)


def as_csv(ctx: Context, study_id: str, team_id: str | None) -> Iterator[str]:
    """The trials of a study as CSV, in pieces.

    Parameters, metrics and resources have columns of their own: ``params.r1``, ``metrics.accuracy``,
    ``resources.seconds``. A cell that a spreadsheet would read as a formula gets an apostrophe in front.

    Raises:
        NotFound: there is no such study in this team.
    """
    _study(ctx, study_id, team_id)
    names: dict[str, None] = {}
    for trial in _trials(ctx, study_id):
        names.update(dict.fromkeys(_measured(trial)))
    return _csv(ctx, study_id, [*COLUMNS, *sorted(names)])


def _measured(trial: Trial) -> dict[str, Any]:
    groups = {"params": trial.params, "metrics": trial.metrics, "resources": trial.resources}
    return {
        f"{group}.{name}": value
        for group, values in groups.items()
        for name, value in values.items()
        if isinstance(value, int | float | str)
    }


def _csv(ctx: Context, study_id: str, columns: list[str]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="")
    writer.writeheader()
    for k, trial in enumerate(_trials(ctx, study_id)):
        row = {**_flat(trial), **_measured(trial)}
        writer.writerow({name: _cell(row.get(name)) for name in columns})
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


def _cell(value: Any) -> Any:
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
    study = _study(ctx, study_id, team_id)
    comparison = compare(ctx, study_id, team_id)
    with ctx.db.read() as session:
        predictions = Studies(session).predictions(study_id)
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
    for k, trial in enumerate(_trials(ctx, study.id)):
        yield (", " if k else "") + json.dumps(asdict(trial), default=_plain)
    yield "]}"


def _plain(value: Any) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)


def as_optuna(ctx: Context, study_id: str, team_id: str | None) -> Path:
    """The search trials as an SQLite file for ``optuna.load_study(study_name=..., storage="sqlite:///FILE")``.

    The study's name in it is the study's id; parameters are those of the search space as users see them.
    The caller removes the file.

    Raises:
        NotFound: there is no such study in this team.
    """
    study = _study(ctx, study_id, team_id)
    handle = tempfile.NamedTemporaryFile(prefix="cdka-optuna-", suffix=".db", delete=False)  # noqa: SIM115
    handle.close()
    storage = optuna.storages.RDBStorage(f"sqlite:///{handle.name}")
    objectives = study.spec.all_objectives
    made = optuna.create_study(
        storage=storage,
        study_name=study.id,
        directions=["maximize" if o.direction is Direction.MAXIMIZE else "minimize" for o in objectives],
    )
    made.set_metric_names([o.metric for o in objectives])
    made.set_user_attr("name", study.name)
    made.set_user_attr("spec", study.spec.model_dump(mode="json"))
    space = _visible_space(study)
    made.add_trials([_as_optuna(study, t, space) for t in _trials(ctx, study_id) if t.phase is TrialPhase.SEARCH])
    storage.engine.dispose()
    return Path(handle.name)


def _visible_space(study: Study) -> dict[str, optuna.distributions.BaseDistribution]:
    space = study.spec.search_space
    choices = study.plan.variants
    methods = [m.sizes for choice in choices for m in choice.methods.values()]
    visible: dict[str, optuna.distributions.BaseDistribution] = {}
    parts = {"": [pair for choice in choices for pair in choice.structures]}
    if study.plan.groups:
        # Methods besides CDKA have one structure.
        parts = {f"{name}.": list(pairs) for name, pairs in study.plan.groups.items()} | ({"": []} if methods else {})
    for part, pairs in parts.items():
        most = max([pair.r_high for pair in pairs] + [sizes.get("r", 1) for sizes in methods if not part])
        visible |= {
            f"{part}r1": optuna.distributions.CategoricalDistribution(space.r1_sizes()),
            f"{part}r2": optuna.distributions.CategoricalDistribution(space.r2_sizes()),
            f"{part}r": optuna.distributions.IntDistribution(1, most),
        }
    if space.method is not None:
        visible["method"] = optuna.distributions.CategoricalDistribution(space.methods())
        factors = list(dict.fromkeys(sizes["factor"] for sizes in methods if "factor" in sizes))
        if factors:
            visible["factor"] = optuna.distributions.CategoricalDistribution(factors)
    sampled = distributions(study.spec, study.plan)
    visible |= {name: sampled[name] for name in space.parameters() if name in sampled}
    return visible


def _as_optuna(
    study: Study, trial: Trial, space: dict[str, optuna.distributions.BaseDistribution]
) -> optuna.trial.FrozenTrial:
    several = len(study.spec.all_objectives) > 1
    found = [trial.metrics.get(o.metric) for o in study.spec.all_objectives]
    state = _STATES.get(trial.state, optuna.trial.TrialState.FAIL)
    if state is optuna.trial.TrialState.COMPLETE and any(v is None for v in found):
        state = optuna.trial.TrialState.FAIL
    values = [float(v) for v in found if v is not None] if state is optuna.trial.TrialState.COMPLETE else None
    if state is optuna.trial.TrialState.PRUNED and trial.curve and not several:
        values = [trial.curve[-1]]
    params = {
        name: trial.params[name]
        for name, distribution in space.items()
        if name in trial.params and _holds(distribution, trial.params[name])
    }
    return optuna.trial.create_trial(
        state=state,
        values=values,
        params=params,
        distributions={name: space[name] for name in params},
        intermediate_values=dict(enumerate(trial.curve, start=1)),
        user_attrs={"trial_id": trial.id, "number": trial.number, "parameters": trial.parameters, **trial.metrics},
    )


def _holds(distribution: optuna.distributions.BaseDistribution, value: Any) -> bool:
    """Whether a value lies in the space; an enqueued one may not."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except ValueError:
        return False
