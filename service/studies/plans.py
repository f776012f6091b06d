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
    shapes: list[cdka.ModuleShape] = field(default_factory=list)
    # Where target modules are searched, the layers of each choice; ``shapes`` has those of all.
    choices: dict[str, list[cdka.ModuleShape]] = field(default_factory=dict)
    # The group of each layer.
    groups: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
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
    return faults + _check_layers(draft, found, adapter)


def _check_layers(draft: _Draft, model: MetaModel, adapter: AdapterSpec) -> list[Fault]:
    """Find the layers that are adapted: by the target modules, by each choice of them, or by groups."""
    space = draft.section("search_space", SearchSpace)
    named: dict[str, tuple[str, str | list[str]]] = {"": ("#/adapter/target_modules", adapter.target_modules)}
    if adapter.groups is not None:
        named = {name: (f"#/adapter/groups/{name}", targets) for name, targets in adapter.groups.items()}
    elif space is not None and space.target_modules is not None:
        found = space.target_modules
        keys = found.choices if isinstance(found.choices, dict) else range(len(found.choices))
        place = "#/search_space/target_modules/choices"
        pairs = zip(keys, found.named.items(), strict=False)
        named = {name: (f"{place}/{key}", targets) for key, (name, targets) in pairs}
    faults: list[Fault] = []
    notes: list[str] = []
    layers: dict[str, list[cdka.ModuleShape]] = {}
    for name, (place, targets) in named.items():
        try:
            shapes = cdka.module_shapes(model.module, _targets(model, targets), draft.kind, heads=model.heads)
            layers[name], said = _used(model, draft.kind, shapes)
            notes += said
        except (cdka.CdkaError, ValueError) as error:
            faults.append(Fault(place, str(error)))
    if faults:
        return faults
    every = {shape.name: shape for shapes in layers.values() for shape in shapes}
    order = {name: k for k, (name, _) in enumerate(model.module.named_modules())}
    draft.shapes = sorted(every.values(), key=lambda shape: order[shape.name])
    draft.notes = tuple(dict.fromkeys(notes))
    if adapter.groups is not None:
        return _group(draft, layers)
    draft.choices = {name: shapes for name, shapes in layers.items() if name}
    return []


def _group(draft: _Draft, layers: Mapping[str, Sequence[cdka.ModuleShape]]) -> list[Fault]:
    """Give each layer its group."""
    faults = []
    for group, shapes in layers.items():
        twice = [shape.name for shape in shapes if shape.name in draft.groups]
        if twice:
            message = (
                f"{cdka.listed(twice)} belong to {draft.groups[twice[0]]}, too; name each layer in one group, by a "
                "pattern if its name is not enough"
            )
            faults.append(Fault(f"#/adapter/groups/{group}", message))
        draft.groups |= {shape.name: group for shape in shapes}
    return faults


def _targets(model: MetaModel, targets: str | list[str]) -> str | list[str]:
    """What an adapter's target modules are; a pattern becomes the names that it matches.

    Raises:
        ValueError: the pattern is none, or matches nothing.
    """
    if not isinstance(targets, str) or targets == cdka.ALL_LINEAR:
        return targets
    pattern = compile_pattern(targets)
    names = [name for name, _ in model.module.named_modules() if name and pattern.fullmatch(name)]
    if not names:
        linear = sorted({name.rsplit(".", 1)[-1] for name in cdka.linear_layers(model.module)})
        raise ValueError(f"the pattern {targets!r} matches no module; linear layers are named: {cdka.listed(linear)}")
    return names


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


def _used(
    model: MetaModel, kind: str | None, shapes: list[cdka.ModuleShape]
) -> tuple[list[cdka.ModuleShape], tuple[str, ...]]:
    """The layers that a training step uses, and remarks on what is not adapted.

    Raises:
        cdka.TargetError: no layer is used.
    """
    unused = set() if kind is None else set(cdka.unused_layers(model.config, kind, shapes))
    used = [shape for shape in shapes if shape.name not in unused]
    notes = []
    if unused:
        named = cdka.listed(sorted(unused))
        if not used:
            raise cdka.TargetError(f"the model does not use the selected layers in training: {named}")
        notes.append(f"{len(unused)} layers get no gradient in this task and are not adapted: {named}")
    experts = cdka.expert_weights(model.module)
    if experts:
        total = sum(experts.values())
        notes.append(f"{total} parameters of experts are not adapted: {cdka.listed(sorted(experts))}")
    return used, tuple(notes)


def _check_budget(draft: _Draft) -> list[Fault]:
    """Resolve the budget on the adapted layers."""
    budget = draft.section("budget", BudgetSpec)
    if budget is None or draft.model is None or not draft.shapes:
        return []
    if faults := _layer_faults(draft, draft.model):
        return faults
    space = draft.section("search_space", SearchSpace)
    if draft.choices and space is not None:
        draft.plan, faults = resolve_choices(draft.model, draft.choices, budget, space)
    else:
        draft.plan, faults = resolve(draft.model, draft.shapes, budget, space, draft.groups)
    if draft.plan is not None:
        draft.plan = draft.plan.model_copy(update={"notes": draft.notes})
    return faults


def _layer_faults(draft: _Draft, model: MetaModel) -> list[Fault]:
    """Methods and baselines that do not take every adapted layer."""
    names = [shape.name for shape in draft.shapes]
    space, compare = draft.section("search_space", SearchSpace), draft.section("compare", CompareSpec)
    asked: list[tuple[str, str]] = []
    if space is not None and space.method is not None:
        one = isinstance(space.method, str)
        asked += [
            (m, "#/search_space/method" if one else f"#/search_space/method/choices/{k}")
            for k, m in enumerate([space.method] if isinstance(space.method, str) else space.method.choices)
        ]
    if compare is not None and compare.first_seeds:
        asked += [(m, f"#/compare/baselines/{k}") for k, m in enumerate(compare.baselines)]
    faults = []
    training = draft.section("training", TrainingSpec)
    for method, place in asked:
        if method == "full" and training is not None and training.quantization != "none":
            message = f"weights of a base in {training.quantization} cannot be trained; leave full out, or quantization"
            faults.append(Fault(place, message))
        if without := cdka.unsupported_layers(model.module, names, method):
            faults.append(Fault(place, f"{method} takes linear layers only; these are others: {cdka.listed(without)}"))
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
