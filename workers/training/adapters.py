"""Build a PEFT configuration from a trial's method and parameters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from peft import LoKrConfig, LoraConfig, MissConfig, PeftModel, TaskType
from peft.config import PeftConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

import cdka
from service.schemas.specs import SIZES, AdapterSpec, LayerShape, by_group

from ..failures import Rejected

_FACTORS = (".cdka_A.", ".cdka_B.", ".lora_A.", ".lora_B.", ".lora_magnitude_vector.", ".miss_block.", ".lokr_w")


def adapter_config(
    method: str,
    params: dict[str, Any],
    layers: Sequence[LayerShape],
    spec: AdapterSpec,
    task_type: TaskType | None,
    heads: Collection[str] = (),
) -> PeftConfig:
    """The adapter of a trial on the planned ``layers``; ``heads`` are trained in full beside it.

    ``full`` trains copies of the layers themselves, as PEFT trains heads; the base keeps its own.
    ``cdka`` and ``krona`` have (r1, r2, r), ``lokr`` has r and a factor, the others r. ``lora`` and ``dora`` scale by
    alpha/r, ``rslora`` by alpha/sqrt(r), ``miss`` not at all. ``spec`` has the dropout of all (for ``lokr``, of ranks),
    and says how factors of ``cdka`` and ``krona`` start and scale.

    Raises:
        ValueError: the method is unknown.
    """
    common: dict[str, Any] = {"target_modules": [layer.name for layer in layers], "task_type": task_type}
    # PEFT would wrap a module within a wrapped one.
    outermost = {h for h in heads if not cdka.is_in_heads(h, set(heads) - {h})}
    if method == "full":
        names = [layer.name for layer in layers]
        # PEFT wants some tuner; this one gets no layer.
        return LoraConfig(
            target_modules=DUMMY_TARGET_MODULES, modules_to_save=[*names, *sorted(outermost)], task_type=task_type
        )
    if outermost:
        common["modules_to_save"] = sorted(outermost)
    if method in ("cdka", "krona"):
        return cdka.CdkaConfig(
            **_structures(params, layers),
            alpha=params["alpha"],
            dropout=spec.dropout,
            init_weights=spec.init_weights,
            scaling=spec.scaling,
            **common,
        )
    if method in ("lora", "rslora", "dora"):
        return LoraConfig(
            r=params["r"],
            lora_alpha=params["alpha"],
            lora_dropout=spec.dropout,
            use_rslora=method == "rslora",
            use_dora=method == "dora",
            **common,
        )
    if method == "miss":
        return MissConfig(r=params["r"], miss_dropout=spec.dropout, **common)
    if method == "lokr":
        return LoKrConfig(
            r=params["r"],
            alpha=params["alpha"],
            rank_dropout=spec.dropout,
            decompose_factor=params["factor"],
            **common,
        )
    raise ValueError(f"unknown method {method!r}; available: {', '.join(cdka.METHODS)}")


def _structures(params: dict[str, Any], layers: Sequence[LayerShape]) -> dict[str, Any]:
    """The structure of all layers, or that of one group and patterns for the layers of the others."""
    groups = by_group(params)
    if not groups:
        return {name: params[name] for name in SIZES}
    first = next(iter(groups))
    sizes = {layer.name: groups[layer.group] for layer in layers if layer.group is not None and layer.group != first}
    patterns = {"r1_pattern": 0, "r2_pattern": 1, "rank_pattern": 2}
    return {
        **dict(zip(SIZES, groups[first], strict=True)),
        **{argument: {name: found[k] for name, found in sizes.items()} for argument, k in patterns.items()},
    }


def require_layers(model: nn.Module, layers: Sequence[LayerShape], heads: Collection[str]) -> None:
    """Check that a model has the layers that its study was planned with.

    Raises:
        Rejected: one is missing, has another shape, or is trained in full as part of a new head.
    """
    for layer in layers:
        if cdka.is_in_heads(layer.name, heads):
            raise Rejected(
                f"the study plans an adapter for {layer.name}, but the checkpoint has no weights for it, so it is "
                "trained in full: name adapter.target_modules without it"
            )
        try:
            found = cdka.layer_dimensions(model.get_submodule(layer.name))
        except (AttributeError, cdka.CdkaError) as error:
            raise Rejected(f"the model has no layer {layer.name}, with which the study was planned") from error
        if found != (layer.d_in, layer.d_out):
            raise Rejected(
                f"{layer.name} maps {found[0]} to {found[1]} values, but the study was planned with "
                f"{layer.d_in} to {layer.d_out}"
            )


def freeze_biases(model: PeftModel, layers: Sequence[LayerShape]) -> None:
    """Where layers themselves are trained, keep their biases: adapters do not change them either."""
    base = model.get_base_model()
    for layer in layers:
        for name, parameter in base.get_submodule(layer.name).named_parameters():
            if name.endswith("bias"):
                parameter.requires_grad_(False)  # torch's own name for it is positional


def require_planned(model: nn.Module, method: str, params: dict[str, Any], layers: Sequence[LayerShape]) -> None:
    """Check that an adapter has as many parameters as were planned.

    Raises:
        Rejected: it has not.
    """
    shapes = [cdka.ModuleShape(layer.name, layer.d_in, layer.d_out) for layer in layers]
    if groups := by_group(params):
        group_of = {layer.name: layer.group for layer in layers}
        planned = sum(
            cdka.count_parameters([s for s in shapes if group_of[s.name] == group], *sizes)
            for group, sizes in groups.items()
        )
    else:
        planned = cdka.count_method_parameters(method, shapes, params)
    factors = _FACTORS if method != "full" else tuple(f".{layer.name}.modules_to_save." for layer in layers)
    real = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and any(f in name for f in factors))
    if real != planned:
        raise Rejected(f"the adapter has {real} parameters; the study planned {planned}")
