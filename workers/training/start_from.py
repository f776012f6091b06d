"""Start a training from the adapter that another one left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file

WEIGHTS = "adapter_model.safetensors"


def load_weights(model: PeftModel, folder: Path) -> None:
    """Give a new adapter, and the modules trained in full beside it, the weights of a stored one.

    Raises:
        ValueError: the stored adapter lacks a weight, or has one of another shape.
    """
    stored = load_file(folder / WEIGHTS)
    try:
        outcome: Any = set_peft_model_state_dict(model, stored)
    except RuntimeError as error:
        raise ValueError(f"the stored adapter does not fit: {error}") from error
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = sorted(trained & set(outcome.missing_keys))
    if missing or outcome.unexpected_keys:
        named = ", ".join([*missing, *outcome.unexpected_keys][:5])
        raise ValueError(f"the stored adapter does not fit; weights without a partner: {named}")
