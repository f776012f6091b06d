"""A study as a database that Optuna opens."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from optuna.storages._rdb import models
from sqlalchemy import insert

from ..context.context import Context
from ..domain.records import Study, Trial
from ..domain.states import TrialPhase, TrialState
from ..domain.study_spec import Direction
from ..search.coordinates import distributions
from .export import PAGE, study_of, trials_of

_MODELS = (
    models.TrialModel,
    models.TrialParamModel,
    models.TrialValueModel,
    models.TrialIntermediateValueModel,
    models.TrialUserAttributeModel,
)
_STATES = {
    TrialState.COMPLETED: optuna.trial.TrialState.COMPLETE,
    TrialState.PRUNED: optuna.trial.TrialState.PRUNED,
    TrialState.QUEUED: optuna.trial.TrialState.WAITING,
    TrialState.WAITING: optuna.trial.TrialState.RUNNING,  # held at a rung, it may be continued
    TrialState.RUNNING: optuna.trial.TrialState.RUNNING,
}


def as_optuna(ctx: Context, study_id: str, team_id: str | None) -> Path:
    """The search trials as an SQLite file for ``optuna.load_study(study_name=..., storage="sqlite:///FILE")``.

    The study's name in it is the study's id; parameters are those of the search space as users see them.
    The caller removes the file.

    Raises:
        NotFound: there is no such study in this team.
    """
    study = study_of(ctx, study_id, team_id)
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
    found = (t for t in trials_of(ctx, study_id) if t.phase is TrialPhase.SEARCH)
    while page := list(islice(found, PAGE)):
        _write(storage, made._study_id, [_as_optuna(study, trial, space) for trial in page], page)
    storage.engine.dispose()
    return Path(handle.name)


def _write(
    storage: optuna.storages.RDBStorage,
    study_id: int,
    frozen: Sequence[optuna.trial.FrozenTrial],
    trials: Sequence[Trial],
) -> None:
    """Insert trials in bulk: ``Study.add_trials`` takes some twenty statements each, and a commit.

    The tables are Optuna's own; a test compares what is loaded with what ``add_trials`` writes.
    """
    rows: dict[Any, list[dict[str, Any]]] = {model: [] for model in _MODELS}
    with storage.scoped_session() as session:
        number = session.query(models.TrialModel).count()
        for k, (one, trial) in enumerate(zip(frozen, trials, strict=True)):
            key = {"trial_id": number + k + 1}
            rows[models.TrialModel].append(
                {
                    **key,
                    "number": number + k,
                    "study_id": study_id,
                    "state": one.state,
                    "_datetime_start_utc": _plain(trial.started_at),
                    "_datetime_complete_utc": _plain(trial.finished_at),
                }
            )
            for name, value in one.params.items():
                distribution = one.distributions[name]
                rows[models.TrialParamModel].append(
                    {
                        **key,
                        "param_name": name,
                        "param_value": distribution.to_internal_repr(value),
                        "distribution_json": optuna.distributions.distribution_to_json(distribution),
                    }
                )
            for objective, value in enumerate(one.values or []):
                stored, kind = models.TrialValueModel.value_to_stored_repr(value)
                rows[models.TrialValueModel].append(
                    {**key, "objective": objective, "value": stored, "value_type": kind}
                )
            for step, value in one.intermediate_values.items():
                seen, form = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
                rows[models.TrialIntermediateValueModel].append(
                    {**key, "step": step, "intermediate_value": seen, "intermediate_value_type": form}
                )
            rows[models.TrialUserAttributeModel] += [
                {**key, "key": name, "value_json": json.dumps(value)} for name, value in one.user_attrs.items()
            ]
        for model, mine in rows.items():
            if mine:
                session.execute(insert(model), mine)
        session.commit()


def _plain(at: datetime | None) -> datetime | None:
    """A time in UTC without its zone, as the table has it."""
    return None if at is None else at.astimezone(UTC).replace(tzinfo=None)


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
