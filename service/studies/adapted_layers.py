"""The layers of a model that an adapter adapts, and which methods take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cdka

from ..domain.search_space import SearchSpace
from ..domain.study_spec import AdapterSpec, CompareSpec
from ..domain.training_spec import TrainingSpec
from ..errors import Fault
from ..patterns import compile_pattern
from .base_models import MetaModel


@dataclass(frozen=True, slots=True)
class AdaptedLayers:
    """The layers in the model's order, and remarks on what is not adapted."""

    shapes: list[cdka.ModuleShape]
    # Where target modules are searched, the layers of each choice; ``shapes`` has those of all.
    choices: dict[str, list[cdka.ModuleShape]] = field(default_factory=dict)
    # The group of each layer, where groups have structures of their own.
    groups: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def adapted_layers(
    model: MetaModel, kind: str | None, adapter: AdapterSpec, space: SearchSpace | None
) -> tuple[AdaptedLayers | None, list[Fault]]:
    """Find the layers: by the target modules, by each choice of them, or by groups. Or say why there are none."""
    faults: list[Fault] = []
    notes: list[str] = []
    layers: dict[str, list[cdka.ModuleShape]] = {}
    for name, (place, targets) in _named(adapter, space).items():
        try:
            shapes = cdka.module_shapes(model.module, _targets(model, targets), kind, heads=model.heads)
            layers[name], said = _used(model, kind, shapes)
            notes += said
        except (cdka.CdkaError, ValueError) as error:
            faults.append(Fault(place, str(error)))
    if faults:
        return None, faults
    every = {shape.name: shape for shapes in layers.values() for shape in shapes}
    order = {name: k for k, (name, _) in enumerate(model.module.named_modules())}
    shapes = sorted(every.values(), key=lambda shape: order[shape.name])
    told = tuple(dict.fromkeys(notes))
    if adapter.groups is not None:
        groups, faults = _grouped(layers)
        return AdaptedLayers(shapes, groups=groups, notes=told), faults
    return AdaptedLayers(shapes, {name: found for name, found in layers.items() if name}, notes=told), []


def _named(adapter: AdapterSpec, space: SearchSpace | None) -> dict[str, tuple[str, str | list[str]]]:
    """Where target modules are named, and which; by group or choice, or under no name."""
    if adapter.groups is not None:
        return {name: (f"#/adapter/groups/{name}", targets) for name, targets in adapter.groups.items()}
    if space is not None and space.target_modules is not None:
        found = space.target_modules
        keys = found.choices if isinstance(found.choices, dict) else range(len(found.choices))
        place = "#/search_space/target_modules/choices"
        pairs = zip(keys, found.named.items(), strict=False)
        return {name: (f"{place}/{key}", targets) for key, (name, targets) in pairs}
    return {"": ("#/adapter/target_modules", adapter.target_modules)}


def _grouped(layers: Mapping[str, Sequence[cdka.ModuleShape]]) -> tuple[dict[str, str], list[Fault]]:
    """The group of each layer; a layer in two groups is a fault."""
    groups: dict[str, str] = {}
    faults = []
    for group, shapes in layers.items():
        twice = [shape.name for shape in shapes if shape.name in groups]
        if twice:
            message = (
                f"{cdka.listed(twice)} belong to {groups[twice[0]]}, too; name each layer in one group, by a "
                "pattern if its name is not enough"
            )
            faults.append(Fault(f"#/adapter/groups/{group}", message))
        groups |= {shape.name: group for shape in shapes}
    return groups, faults


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


def method_faults(
    model: MetaModel,
    layers: AdaptedLayers,
    space: SearchSpace | None,
    compare: CompareSpec | None,
    training: TrainingSpec | None,
) -> list[Fault]:
    """Methods and baselines that do not take every adapted layer."""
    names = [shape.name for shape in layers.shapes]
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
    for method, place in asked:
        if method == "full" and training is not None and training.quantization != "none":
            message = f"weights of a base in {training.quantization} cannot be trained; leave full out, or quantization"
            faults.append(Fault(place, message))
        if without := cdka.unsupported_layers(model.module, names, method):
            faults.append(Fault(place, f"{method} takes linear layers only; these are others: {cdka.listed(without)}"))
    return faults
