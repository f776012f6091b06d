"""Validate a study in full and resolve it on its model, before anything is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

import cdka

from ..domain.faults import schema_faults
from ..domain.metrics import COMPUTED, metrics_of
from ..domain.plan import Plan
from ..domain.ranges import FloatRange
from ..domain.records import StoredPrediction
from ..domain.search_space import SearchSpace
from ..domain.space_faults import space_faults
from ..domain.study_spec import AdapterSpec, BudgetSpec, CompareSpec, ModelSpec, Objective, SearchSpec, StudySpec
from ..domain.task_spec import TaskKind, TaskSpec
from ..domain.training_spec import TrainingSpec
from ..errors import Fault, InvalidRequest, InvalidStudy
from ..patterns import compile_pattern
from .adapted_layers import AdaptedLayers, adapted_layers, method_faults
from .admission import admit
from .base_models import MetaModel, read_model
from .datasets import check_dataset
from .start import start_faults
from .strategies import grid_faults, pruner_faults, search_faults
from .structures import prior_of, rank, resolve, resolve_choices

Section = TypeVar("Section")


@dataclass(frozen=True, slots=True)
class Planned:
    """A valid study: its parsed form, its plan and the predictors' rankings."""

    spec: StudySpec
    plan: Plan
    predictions: dict[str, list[StoredPrediction]]


@dataclass(slots=True)
class _Draft:
    """A study while it is checked: its sections, what its model says of them, and the faults found so far.

    ``spec`` is ``None`` if the study does not parse as a whole. Its other sections are still checked.
    """

    sections: Mapping[str, Any]
    roots: Sequence[Path]
    kind: str | None
    spec: StudySpec | None = None
    faults: list[Fault] = field(default_factory=list)
    model: MetaModel | None = None
    layers: AdaptedLayers | None = None
    plan: Plan | None = None

    def section(self, name: str, kind: type[Section]) -> Section | None:
        """A section, if it parses."""
        found = self.sections.get(name)
        return found if isinstance(found, kind) else None

    def run(self, checks: Iterable[_Check]) -> None:
        """Run the checks in order and collect their faults."""
        for check in checks:
            self.faults += check(self)


_Check = Callable[[_Draft], list[Fault]]


def plan_study(body: Any, roots: Sequence[Path]) -> Planned:
    """Validate a posted study and resolve it on its model.

    Raises:
        InvalidStudy: with every fault that can be found at once, each at its place.
    """
    draft = _draft(body, roots)
    draft.run(_STUDY_CHECKS)
    if draft.spec is not None and draft.plan is not None and not draft.faults:
        draft.run(_PLAN_CHECKS)
    if draft.faults or draft.spec is None or draft.plan is None:
        unique = list(dict.fromkeys(draft.faults))
        raise InvalidStudy(f"the study has {len(unique)} fault{'s' * (len(unique) != 1)}; nothing was stored", unique)
    spec, plan = draft.spec, draft.plan
    rankings = rank(plan, spec.search_space, spec.compare.predictors)
    return Planned(spec, plan.model_copy(update={"prior": prior_of(plan, rankings)}), rankings)


def plan_prediction(
    model: ModelSpec, kind: str, adapter: AdapterSpec, budget: BudgetSpec, roots: Sequence[Path]
) -> tuple[Plan, dict[str, list[StoredPrediction]]]:
    """Predictions for a model, task and budget, without a study.

    Raises:
        InvalidRequest: with every fault, each at its place.
    """
    draft = _Draft({"model": model, "adapter": adapter, "budget": budget}, roots, kind)
    draft.run(_MODEL_CHECKS)
    if draft.faults or draft.plan is None:
        raise InvalidRequest("no prediction can be made", draft.faults)
    return draft.plan, rank(draft.plan, None, list(cdka.FROM_BUDGET))


def _draft(body: Any, roots: Sequence[Path]) -> _Draft:
    try:
        spec = StudySpec.model_validate(body)
    except ValidationError as error:
        sections = _sections(body)
        task = sections.get("task")
        return _Draft(sections, roots, None if task is None else task.architecture, faults=schema_faults(error))
    sections = {name: getattr(spec, name) for name in StudySpec.model_fields}
    return _Draft(sections, roots, spec.task.architecture, spec)


def _sections(body: Any) -> dict[str, Any]:
    """The sections of a faulty study that parse by themselves, so that their further faults are found too."""
    sections: dict[str, Any] = {}
    if not isinstance(body, dict):
        return sections
    for name, info in StudySpec.model_fields.items():
        kind = info.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            continue
        try:
            default = None if info.is_required() else info.get_default()
            sections[name] = kind.model_validate(body[name]) if name in body else default
        except ValidationError:
            continue
    return sections


def _check_training(draft: _Draft) -> list[Fault]:
    task, training = draft.section("task", TaskSpec), draft.section("training", TrainingSpec)
    if task is None or training is None:
        return []
    if training.batching == "length" and task.kind is TaskKind.IMAGE_CLASSIFICATION:
        return [Fault("#/training/batching", "images all have the same size; 'length' is for texts")]
    if training.packing and task.kind is not TaskKind.CAUSAL_LM and task.kind is not TaskKind.CUSTOM:
        return [Fault("#/training/packing", f"packing is for causal_lm; {task.kind} pads its batches")]
    return []


def _check_task(draft: _Draft) -> list[Fault]:
    task = draft.section("task", TaskSpec)
    if task is None:
        return []
    faults = check_dataset(task, draft.roots, "#/task")
    if task.generation.pattern is not None:
        try:
            compile_pattern(task.generation.pattern)
        except ValueError as error:
            faults.append(Fault("#/task/generation/pattern", str(error)))
    named = metrics_of(task)
    if task.metric not in named:
        there = ", ".join(named)
        faults.append(Fault("#/task/metric", f"unknown metric {task.metric!r} for {task.kind}; available: {there}"))
    return faults + _objective_faults(task, draft.section("objectives", list) or [])


def _objective_faults(task: TaskSpec, objectives: Sequence[Objective]) -> list[Fault]:
    faults = []
    named = metrics_of(task)
    known = {**named, **COMPUTED}
    for k, objective in enumerate(objectives):
        place, metric = f"#/objectives/{k}/metric", objective.metric
        if metric not in known:
            faults.append(Fault(place, f"unknown metric {metric!r} for {task.kind}; available: {', '.join(known)}"))
        if metric in [o.metric for o in objectives[:k]]:
            faults.append(Fault(place, f"{metric!r} is an objective already"))
    if objectives and objectives[0].metric in COMPUTED:
        message = f"the confirmation uses the first objective, which must be one of: {', '.join(named)}"
        faults.append(Fault("#/objectives/0/metric", message))
    for k, objective in enumerate(objectives):
        natural = known.get(objective.metric)
        if natural is not None and objective.direction is not natural:
            faults.append(Fault(f"#/objectives/{k}/direction", f"{objective.metric} is to {natural}"))
    return faults


def _check_search(draft: _Draft) -> list[Fault]:
    search, task = draft.section("search", SearchSpec), draft.section("task", TaskSpec)
    if search is None:
        return []
    objectives = draft.section("objectives", list) or []
    if search.repeats != 1:
        return [Fault("#/search/repeats", "this makes several studies: post it to /groups, as cdka submit does")]
    faults = search_faults(search, len(objectives), metrics_of(task) if task is not None else None)
    training, space = draft.section("training", TrainingSpec), draft.section("search_space", SearchSpace)
    if training is not None and space is not None and "epochs" in (settled := space.settled()):
        training = training.model_copy(update={"epochs": settled["epochs"]})
    return faults or pruner_faults(search, training)


def _check_space(draft: _Draft) -> list[Fault]:
    space = draft.section("search_space", SearchSpace)
    if space is None:
        return []
    training, adapter = draft.section("training", TrainingSpec), draft.section("adapter", AdapterSpec)
    return space_faults(space, training, adapter, draft.section("search", SearchSpec))


def _check_compare(draft: _Draft) -> list[Fault]:
    compare, space = draft.section("compare", CompareSpec), draft.section("search_space", SearchSpace)
    if compare is None or space is None:
        return []
    if compare.first_seeds and compare.learning_rate == "tuned" and not isinstance(space.learning_rate, FloatRange):
        message = "'tuned' needs search_space.learning_rate to be a range; or say 'shared'"
        return [Fault("#/compare/learning_rate", message)]
    return []


def _check_model(draft: _Draft) -> list[Fault]:
    """Read the model, and check what depends on it alone."""
    model, adapter = draft.section("model", ModelSpec), draft.section("adapter", AdapterSpec)
    if model is None or adapter is None:
        return []
    found = read_model(model, draft.kind, draft.roots)
    if isinstance(found, Fault):
        return [found]
    draft.model, faults = found, []
    training = draft.section("training", TrainingSpec)
    if training is not None and found.positions is not None:
        faults += _length_faults(training, draft.section("task", TaskSpec), model.path, found.positions, draft)
    draft.layers, more = adapted_layers(found, draft.kind, adapter, draft.section("search_space", SearchSpace))
    return faults + more


def _length_faults(
    training: TrainingSpec, task: TaskSpec | None, path: str, positions: int, draft: _Draft
) -> list[Fault]:
    """Faults of lengths that a model's positions do not admit."""
    place = "#/training/max_length"
    if training.max_length > positions:
        return [Fault(place, f"{training.max_length} tokens are more than the {positions} positions of {path!r}")]
    if task is None or draft.spec is None or "exact_match" not in draft.spec.metrics_wanted:
        return []
    new = task.generation.max_new_tokens
    if task.architecture == "seq2seq_lm" and new > positions:
        message = f"{new} new tokens are more than the {positions} positions of {path!r}"
        return [Fault("#/task/generation/max_new_tokens", message)]
    # The longest prompt has max_length - 1 tokens, and the last new token needs no position.
    needed = training.max_length - 1 + new - 1
    if task.architecture != "causal_lm" or needed <= positions:
        return []
    right = positions - new + 2
    advice = f"lower it to {right}, or " if right > 1 else ""
    message = (
        f"a prompt of up to {training.max_length - 1} tokens and {new} new ones (task.generation.max_new_tokens) "
        f"need {needed} positions; {path!r} has {positions}: {advice}lower max_new_tokens"
    )
    return [Fault(place, message)]


def _check_budget(draft: _Draft) -> list[Fault]:
    """Resolve the budget on the adapted layers."""
    budget = draft.section("budget", BudgetSpec)
    layers = draft.layers
    if budget is None or draft.model is None or layers is None or not layers.shapes:
        return []
    space, compare = draft.section("search_space", SearchSpace), draft.section("compare", CompareSpec)
    training = draft.section("training", TrainingSpec)
    if faults := method_faults(draft.model, layers, space, compare, training):
        return faults
    if layers.choices and space is not None:
        draft.plan, faults = resolve_choices(draft.model, layers.choices, budget, space)
    else:
        draft.plan, faults = resolve(draft.model, layers.shapes, budget, space, layers.groups)
    if draft.plan is not None:
        draft.plan = draft.plan.model_copy(update={"notes": layers.notes})
    return faults


def _check_grid(draft: _Draft) -> list[Fault]:
    assert draft.spec is not None
    assert draft.plan is not None
    return grid_faults(draft.spec, draft.plan) + start_faults(draft.spec, draft.plan)


def _check_memory(draft: _Draft) -> list[Fault]:
    assert draft.spec is not None
    assert draft.plan is not None
    assert draft.model is not None
    draft.spec, draft.plan, faults = admit(draft.spec, draft.plan, draft.model)
    return faults


_MODEL_CHECKS: tuple[_Check, ...] = (_check_model, _check_budget)
_STUDY_CHECKS: tuple[_Check, ...] = (
    _check_training,
    _check_task,
    _check_space,
    _check_search,
    _check_compare,
    *_MODEL_CHECKS,
)
# For studies without a fault so far.
_PLAN_CHECKS: tuple[_Check, ...] = (_check_grid, _check_memory)
