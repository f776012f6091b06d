"""Replace the values of a loaded adapter in place, so that compiled code and optimizers keep their tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel

from .errors import AdapterError
from .exchange import PREFIX, read_adapter
from .layer import CdkaLayer


@torch.no_grad()
def hotswap_adapter(model: PeftModel, directory: str | Path, adapter_name: str = "default") -> None:
    """Overwrite the factors of a loaded adapter with those of a saved adapter of the same structure.

    Nothing is changed unless all layers match.

    Raises:
        AdapterError: the adapters differ in their layers or in a layer's ``(r1, r2, r)``; the message says where.
    """
    saved = read_adapter(directory)
    layers = {
        name.removeprefix(PREFIX): layer
        for name, layer in model.named_modules()
        if isinstance(layer, CdkaLayer) and adapter_name in layer.cdka_A
    }
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
    for name, layer in layers.items():
        A, B = saved.layers[name]
        layer.cdka_A[adapter_name].copy_(A)
        # read_adapter folds the saved scale into B; the loaded layer applies its own scale.
        layer.cdka_B[adapter_name].copy_(B / layer.scaling[adapter_name])
