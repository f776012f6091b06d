"""Replace the values of a loaded adapter in place, so that compiled code and optimizers keep their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor

from .errors import AdapterError
from .exchange import PREFIX, SavedAdapter, plain_names, plain_parameter, read_adapter
from .layer import CdkaLayer


@torch.no_grad()
def hotswap_adapter(model: PeftModel, directory: str | Path, adapter_name: str = "default") -> None:
    """Overwrite a loaded adapter with a saved one of the same structure: factors, ``modules_to_save`` and biases.

    A scale that was set by ``set_scale`` stays: at 0.5 the new adapter counts half, too. Nothing is changed unless
    everything matches.

    Raises:
        AdapterError: there is no such adapter, it is merged, or the adapters differ in their layers, in a layer's
            ``(r1, r2, r)``, in what is saved beside the factors, or in whether they started from the base weight.
    """
    saved = read_adapter(directory)
    plain = plain_names(model)
    layers = {
        plain[name].removeprefix(PREFIX): layer
        for name, layer in model.named_modules()
        if isinstance(layer, CdkaLayer) and adapter_name in layer.cdka_A
    }
    if not layers:
        raise AdapterError(f"the model has no CDKA adapter named {adapter_name!r}")
    _require_swappable(layers, saved, adapter_name)
    beside = _beside(model, plain, adapter_name, saved)
    _require_same({name: value.shape for name, value in beside.items()}, saved.others)
    for name, layer in layers.items():
        A, B = saved.layers[name]
        layer.cdka_A[adapter_name].copy_(A)
        # read_adapter folds the saved scale into B; the loaded layer applies its own.
        layer.cdka_B[adapter_name].copy_(B / layer.own_scale(adapter_name))
    for name, value in beside.items():
        value.copy_(saved.others[name])


def _require_swappable(layers: Mapping[str, CdkaLayer], saved: SavedAdapter, adapter_name: str) -> None:
    if set(layers) != set(saved.layers):
        different = ", ".join(sorted(set(layers) ^ set(saved.layers)))
        raise AdapterError(f"the adapters differ in their layers: {different}")
    for name, layer in layers.items():
        A, B = saved.layers[name]
        if A.shape != layer.cdka_A[adapter_name].shape or B.shape != layer.cdka_B[adapter_name].shape:
            raise AdapterError(
                f"the factors differ at {name}: saved with shapes {tuple(A.shape)} and {tuple(B.shape)}, loaded with "
                f"{tuple(layer.cdka_A[adapter_name].shape)} and {tuple(layer.cdka_B[adapter_name].shape)}"
            )
        if adapter_name in layer.merged_adapters:
            raise AdapterError(f"{adapter_name!r} is merged into {name}; unmerge it first")
        if (adapter_name in layer.taken_out) != (saved.config.init_weights == "weight"):
            raise AdapterError(
                "one of the adapters has init_weights='weight' and the other has not; their base weights differ"
            )


def _beside(model: PeftModel, plain: dict[str, str], adapter_name: str, saved: SavedAdapter) -> dict[str, Tensor]:
    """Tensors that belong to an adapter beside its factors, by their keys in a saved adapter."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
            state = module.modules_to_save[adapter_name].state_dict(keep_vars=True)
            found |= {f"{plain[name]}.{key}": value for key, value in state.items()}
    # Biases that are trained along are the base model's.
    parameters = {plain_parameter(name, plain): value for name, value in model.named_parameters()}
    bias = getattr(model.peft_config[adapter_name], "bias", "none")
    if bias != saved.config.bias:
        raise AdapterError(f"the adapters differ in bias: saved with {saved.config.bias!r}, loaded with {bias!r}")
    if bias != "none":
        found |= {key: parameters[key] for key in saved.others if key.endswith(".bias") and key in parameters}
    return found


def _require_same(loaded: Mapping[str, torch.Size], saved: Mapping[str, Tensor]) -> None:
    if loaded.keys() != saved.keys():
        different = ", ".join(sorted(key.removeprefix(PREFIX) for key in loaded.keys() ^ saved.keys()))
        raise AdapterError(f"the adapters differ in modules_to_save or other weights: {different}")
    for name, shape in loaded.items():
        if shape != saved[name].shape:
            raise AdapterError(
                f"{name.removeprefix(PREFIX)} is saved with shape {tuple(saved[name].shape)}, "
                f"loaded with {tuple(shape)}"
            )
