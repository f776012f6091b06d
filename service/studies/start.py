"""The first trials of a search: the predictors' choices and configurations of the user, before the sampler proposes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

import cdka

from ..domain.faults import schema_faults
from ..domain.plan import Plan
from ..domain.records import NewTrial, StoredPrediction
from ..domain.search_space import OPTIONAL
from ..domain.states import TrialPhase
from ..domain.structure import by_group, of_groups
from ..domain.study_spec import SearchedParameters, StartConfiguration, StudySpec
from ..domain.training_spec import TrainingSpec
from ..errors import Fault
from ..search.coordinates import CDKA, METHOD, TARGETS, to_point
from .defaults import PUBLISHED_ALPHA, typical
from .structures import count, grouped_alike, module_shapes, shapes_by_group

# The name of the user's configurations among the candidates of a search.
NAMED = "start"


def start_of(spec: StudySpec) -> Sequence[str | StartConfiguration]:
    """What a search starts with: by default each predictor that the study names, and nothing before a grid."""
    if spec.search.start is not None:
        return spec.search.start
    if spec.search.sampler == "grid" or CDKA not in spec.search_space.methods():
        return []
    return spec.compare.predictors


def start_faults(spec: StudySpec, plan: Plan) -> list[Fault]:
    """The faults of ``search.start``, each at its place."""
    faults = []
    for k, entry in enumerate(spec.search.start or []):
        place = f"#/search/start/{k}"
        if CDKA not in spec.search_space.methods():
            faults.append(Fault(place, "these are configurations of CDKA, which search_space.method does not name"))
        elif isinstance(entry, StartConfiguration):
            own = optional_faults(spec, entry, place) + group_faults(plan, entry.groups, place)
            faults += own
            if own:
                continue
            faults += configuration_faults(plan, _params(entry, spec, plan), place)
        elif entry not in spec.compare.predictors:
            named = ", ".join(spec.compare.predictors) or "none"
            faults.append(Fault(place, f"compare.predictors does not name {entry!r}; it names: {named}"))
    return faults


def start_trials(
    spec: StudySpec, plan: Plan, rankings: Mapping[str, Sequence[StoredPrediction]], first_number: int, most: int
) -> list[NewTrial]:
    """Up to ``most`` trials of ``search.start`` for which there are rankings; a repeated configuration runs once.

    A predictor's choice has the alpha that the method's authors publish and the middle of the learning rates.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    named = _method(spec)
    for entry in start_of(spec):
        if isinstance(entry, StartConfiguration):
            found.append((NAMED, _params(entry, spec, plan)))
        elif entry in rankings:
            top = rankings[entry][0]
            params = grouped_alike(plan, {"r1": top.r1, "r2": top.r2, "r": top.r, "alpha": PUBLISHED_ALPHA})
            rate = typical(spec.search_space, "learning_rate")
            found.append((entry, {**params, "learning_rate": rate, **_optional(spec, plan, {}), **named}))
    once = [(name, params) for k, (name, params) in enumerate(found) if params not in [p for _, p in found[:k]]]
    return [
        search_trial(spec, plan, params, first_number + k, candidate=name)
        for k, (name, params) in enumerate(once[:most])
    ]


def search_trial(
    spec: StudySpec, plan: Plan, params: dict[str, Any], number: int, candidate: str | None = None
) -> NewTrial:
    """A search trial of a configuration that the sampler did not propose."""
    params = grouped_alike(plan, params)
    return NewTrial(
        number=number,
        phase=TrialPhase.SEARCH,
        method="cdka",
        params=params,
        point=to_point(params, spec, plan),
        parameters=count(plan, CDKA, params),
        seed=spec.search.seed,
        candidate=candidate,
    )


def configuration_faults(plan: Plan, params: Mapping[str, Any], place: str) -> list[Fault]:
    """Why a configuration cannot run: sizes that do not divide a layer, or a count over the budget.

    It may lie outside the search space: then the sampler does not learn from it.
    """
    plan = plan.at(params)
    parts = {f"{place}/": (module_shapes(plan), params.get("r1"), params.get("r2"))}
    if groups := by_group(params):
        shapes = shapes_by_group(plan)
        parts = {f"{place}/groups/{g}/": (shapes[g], r1, r2) for g, (r1, r2, _) in groups.items()}
    faults = []
    for where, (layers, r1, r2) in parts.items():
        for name, sizes in (("r1", (r1, 1)), ("r2", (1, r2))):
            try:
                cdka.require_divisible(layers, *sizes)
            except cdka.IndivisibleError as error:
                faults.append(Fault(f"{where}{name}", str(error)))
    if faults:
        return faults
    cost = count(plan, CDKA, params)
    if cost <= plan.max_parameters:
        return []
    over = f"{cost:,} parameters are over the budget of {plan.max_parameters:,}"
    if groups:
        return [Fault(f"{place}/groups", f"{over}; lower an r")]
    most = plan.max_parameters // (cost // params["r"])
    right = f"r may be up to {most}" if most else "no r fits: choose other sizes"
    return [Fault(f"{place}/r", f"{over}; {right}")]


def group_faults(plan: Plan, groups: Mapping[str, object] | None, place: str) -> list[Fault]:
    """Why sizes by group are not those of the study's groups."""
    if groups is None:
        return []
    if not plan.groups:
        return [Fault(f"{place}/groups", "adapter.groups names no groups; write r1, r2 and r")]
    named = ", ".join(plan.groups)
    faults = [
        Fault(f"{place}/groups/{g}", f"no such group; there are: {named}") for g in groups if g not in plan.groups
    ]
    missing = [g for g in plan.groups if g not in groups]
    if missing:
        faults.append(Fault(f"{place}/groups", f"sizes of {', '.join(missing)} are missing; there are: {named}"))
    return faults


def _params(entry: StartConfiguration, spec: StudySpec, plan: Plan) -> dict[str, Any]:
    optional = _optional(spec, plan, entry.optional())
    rate = entry.learning_rate or typical(spec.search_space, "learning_rate")
    rest = {"alpha": entry.alpha or PUBLISHED_ALPHA, "learning_rate": rate, **optional, **_method(spec)}
    if entry.groups is not None:
        return {**of_groups({g: (s.r1, s.r2, s.r) for g, s in entry.groups.items()}), **rest}
    assert entry.r1 is not None, "the entry's own check"
    assert entry.r2 is not None, "the entry's own check"
    r = entry.r
    if r is None:
        try:
            r = max(1, cdka.largest_r(module_shapes(plan.at(optional)), plan.max_parameters, entry.r1, entry.r2))
        except cdka.IndivisibleError:
            r = 1  # the sizes are rejected
    return grouped_alike(plan, {"r1": entry.r1, "r2": entry.r2, "r": r, **rest})


def _method(spec: StudySpec) -> dict[str, Any]:
    """The method's name, where it is searched."""
    return {} if spec.search_space.method is None else {METHOD: CDKA}


def with_optional(spec: StudySpec, plan: Plan, params: Mapping[str, Any], given: SearchedParameters) -> dict[str, Any]:
    """A configuration with a value for each parameter that only this study's search space names."""
    return grouped_alike(plan, {**params, **_optional(spec, plan, given.optional()), **_method(spec)})


def optional_faults(spec: StudySpec, given: SearchedParameters, place: str) -> list[Fault]:
    """Why values that are given for such parameters cannot be used."""
    faults = []
    for name in given.optional():
        if getattr(spec.search_space, name) is None:
            where = OPTIONAL[name]
            fixed = getattr(getattr(spec, where), name)
            message = f"search_space does not name {name}: {where}.{name} is {fixed} in every trial; leave it out"
            faults.append(Fault(f"{place}/{name}", message))
    targets = spec.search_space.target_modules
    if targets is not None and given.target_modules not in (None, *targets.named):
        message = f"there is no choice of that name; there are: {', '.join(targets.named)}"
        faults.append(Fault(f"{place}/target_modules", message))
    return faults or _training_faults(spec, given, place)


def _training_faults(spec: StudySpec, given: SearchedParameters, place: str) -> list[Fault]:
    """Why values do not go together with the rest of the study: it was admitted for the values of its space."""
    space, values = spec.search_space, _optional(spec, None, given.optional())
    faults = []
    processes = spec.resources.shape.processes
    if given.batch_size is not None and given.batch_size % processes:
        right = max(processes, given.batch_size // processes * processes)
        message = f"{processes} processes share a batch of {given.batch_size} unevenly; {right} would do"
        faults.append(Fault(f"{place}/batch_size", message))
    elif given.batch_size is not None and given.batch_size > (most := max(space.ends("batch_size"))):
        message = f"the study was admitted for batches of up to {most}; write {most} or less"
        faults.append(Fault(f"{place}/batch_size", message))
    if given.epochs is not None and spec.search.pruner != "none" and given.epochs not in space.ends("epochs"):
        message = f"a pruner compares trials of one length: write {space.ends('epochs')[0]}, or leave it out"
        faults.append(Fault(f"{place}/epochs", message))
    training = {name: value for name, value in values.items() if OPTIONAL[name] == "training"}
    try:
        TrainingSpec.model_validate({**spec.training.model_dump(), **training})
    except ValidationError as error:
        faults += [Fault(place, fault.detail) for fault in schema_faults(error)]
    return faults


def _optional(spec: StudySpec, plan: Plan | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """For each searched parameter that a study need not search: the given value, else a typical one.

    Target modules are those on which the budget was counted.
    """
    space = spec.search_space
    searched = [name for name in OPTIONAL if getattr(space, name) is not None]
    own = {} if plan is None else {TARGETS: plan.reference}
    return {name: given.get(name, own.get(name) or typical(space, name)) for name in searched}
