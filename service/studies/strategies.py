"""Check a study's sampler and pruner, and list the available ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from ..domain.faults import schema_faults
from ..domain.plan import Plan
from ..domain.study_spec import Direction, SearchSpec, StudySpec
from ..domain.training_spec import TrainingSpec
from ..errors import Fault
from ..search.coordinates import LARGEST_GRID, grid_size
from ..search.pruners import PRUNERS, PrunerKind
from ..search.samplers import GRID, SAMPLERS, SamplerKind


@dataclass(frozen=True, slots=True)
class Strategy:
    """A sampler or pruner as users see it."""

    name: str
    summary: str
    multi_objective: bool
    options: dict[str, Any]


def samplers() -> list[Strategy]:
    """Every sampler with the JSON schema of its options."""
    return [Strategy(s.name, s.summary, s.multi_objective, s.options.model_json_schema()) for s in SAMPLERS.values()]


def pruners() -> list[Strategy]:
    """Every pruner with the JSON schema of its options."""
    return [Strategy(p.name, p.summary, True, p.options.model_json_schema()) for p in PRUNERS.values()]


def search_faults(search: SearchSpec, objectives: int, metrics: Mapping[str, Direction] | None) -> list[Fault]:
    """The faults of a study's search section; ``metrics`` are the task's, if known."""
    faults = _named("sampler", search.sampler, search.sampler_options, SAMPLERS)
    faults += _named("pruner", search.pruner, search.pruner_options, PRUNERS)
    sampler = SAMPLERS.get(search.sampler)
    if sampler is not None and objectives > 1 and not sampler.multi_objective:
        able = ", ".join(s.name for s in SAMPLERS.values() if s.multi_objective)
        message = f"{search.sampler} searches for one objective; for several use one of: {able}"
        faults.append(Fault("#/search/sampler", message))
    if search.pruning_metric is not None and metrics is not None and search.pruning_metric not in metrics:
        message = f"no metric {search.pruning_metric!r} is reported while a trial runs; available: {', '.join(metrics)}"
        faults.append(Fault("#/search/pruning_metric", message))
    return faults


def _named(
    field: str, given: str, options: Mapping[str, Any], known: Mapping[str, SamplerKind] | Mapping[str, PrunerKind]
) -> list[Fault]:
    kind = known.get(given)
    if kind is None:
        return [Fault(f"#/search/{field}", f"unknown {field} {given!r}; available: {', '.join(known)}")]
    try:
        kind.options.model_validate(dict(options))
    except ValidationError as error:
        names = ", ".join(kind.options.model_fields) or "none"
        faults = schema_faults(error, unknown_key=f"unknown option of {given}; available: {names}")
        return [Fault(f"#/search/{field}_options{f.pointer.removeprefix('#')}", f.detail) for f in faults]
    return []


def pruner_faults(search: SearchSpec, training: TrainingSpec | None) -> list[Fault]:
    """The faults of pruner options that stop no trial, or leave none, whatever the trials report.

    The last of a trial's evaluations is not judged. How many there are is known where each epoch has one. ``training``
    is ``None`` if that section has faults of its own.
    """
    given, pruner = search.pruner_options, search.pruner
    options = PRUNERS[pruner].options.model_validate(given).model_dump()
    faults: list[Fault] = []

    def fault(key: str, message: str) -> None:
        faults.append(Fault(f"#/search/pruner_options/{key}", message))

    if pruner == "hyperband" and (options["max_resource"] or options["min_resource"]) < options["min_resource"]:
        fault("max_resource", f"max_resource is below min_resource ({options['min_resource']})")
    if pruner == "percentile" and options["percentile"] in (0, 100):
        fault("percentile", "0 stops every trial, and 100 none; write a number in between")
    if pruner == "wilcoxon" and options["p_threshold"] == 0:
        fault("p_threshold", "0 stops no trial; write a probability above 0, such as 0.1")
    if training is not None and training.eval_steps is None and training.max_steps is None:
        key, first = _first_judged(pruner, options)
        epochs = training.epochs
        if first >= epochs and key in given:
            fault(
                key,
                f"this stops no trial: it judges from evaluation {first:,} on, but with training.epochs {epochs} a "
                f"trial has {epochs}, and the last one is not judged; lower it, or train for more epochs",
            )
    return faults


def _first_judged(pruner: str, options: Mapping[str, Any]) -> tuple[str, int]:
    """The option that delays a pruner, and the first evaluation at which the pruner can stop a trial."""
    if pruner == "asha" and options["min_early_stopping_rate"]:
        rate = options["min_early_stopping_rate"]
        return "min_early_stopping_rate", options["min_resource"] * options["reduction_factor"] ** rate
    if pruner in ("asha", "hyperband"):
        return "min_resource", options["min_resource"]
    if pruner in ("median", "percentile"):
        return "n_warmup_steps", max(1, options["n_warmup_steps"])
    if pruner == "patient":
        return "patience", options["patience"] + 2
    if pruner == "wilcoxon":
        return "n_startup_steps", max(2, options["n_startup_steps"])
    return "", 0


def grid_faults(spec: StudySpec, plan: Plan) -> list[Fault]:
    """The fault of a grid that is too large to enumerate."""
    if spec.search.sampler != GRID:
        return []
    options: BaseModel = SAMPLERS[GRID].options.model_validate(spec.search.sampler_options)
    size = grid_size(spec, plan, options.model_dump()["steps"])
    if size <= LARGEST_GRID:
        return []
    return [Fault("#/search/sampler", f"the grid has {size:,} points, more than {LARGEST_GRID:,}: narrow the space")]
