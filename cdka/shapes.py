"""Reads the shapes of the layers that PEFT would adapt, without loading weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, TaskType
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_TARGETS
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.pytorch_utils import Conv1D

from .counts import ModuleShape
from .errors import TargetError
from .heads import head_modules, is_in_heads
from .layer import layer_dimensions

AUTO_MODELS: dict[str, Any] = {
    "sequence_classification": AutoModelForSequenceClassification,
    "sequence_regression": AutoModelForSequenceClassification,
    "causal_lm": AutoModelForCausalLM,
    "seq2seq_lm": AutoModelForSeq2SeqLM,
    "image_classification": AutoModelForImageClassification,
}
PEFT_TASKS: dict[str, TaskType] = {
    "sequence_classification": TaskType.SEQ_CLS,
    "sequence_regression": TaskType.SEQ_CLS,
    "causal_lm": TaskType.CAUSAL_LM,
    "seq2seq_lm": TaskType.SEQ_2_SEQ_LM,
}


def meta_model(config: PreTrainedConfig, task_kind: str | None = None) -> nn.Module:
    """Build the AutoModel class of ``task_kind`` from a config on torch's meta device, which takes no memory.

    Raises:
        TargetError: transformers has no model of this kind for the config.
    """
    auto = AutoModel if task_kind is None else AUTO_MODELS[task_kind]
    try:
        with torch.device("meta"):
            model: nn.Module = auto.from_config(config)
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):
            said = f"transformers has no {task_kind} model for model type {config.model_type!r}"
        else:
            said = f"the config cannot be used: {str(error).splitlines()[0]}"
        raise TargetError(said) from error
    return model


ALL_LINEAR = "all-linear"


def module_shapes(
    model_or_config: nn.Module | PreTrainedConfig,
    target_modules: str | list[str] | None = None,
    task_kind: str | None = None,
    exclude_modules: str | list[str] | None = None,
    heads: Collection[str] | None = None,
) -> list[ModuleShape]:
    """Shapes of the layers that an adapter with these ``target_modules`` would adapt, in module order.

    A config is built as the AutoModel class of ``task_kind`` on torch's meta device: nothing is loaded and no
    memory is used. Modules are selected by PEFT's own rules: a list matches names and suffixes, a string is a
    regular expression or ``"all-linear"``, ``None`` is PEFT's mapping for LoRA. ``heads`` are left out, because
    they are trained in full; ``None`` is :func:`~cdka.head_modules` of a complete checkpoint.

    Raises:
        TargetError: nothing is selected, or a selected module is not a linear layer.
    """
    model = model_or_config if isinstance(model_or_config, nn.Module) else meta_model(model_or_config, task_kind)
    selection = _selection(model, target_modules, task_kind, exclude_modules)
    left_out = head_modules(model, task_kind) if heads is None else heads
    shapes = []
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) or ".base_layer" in name:
            continue
        if not name or is_in_heads(name, left_out) or not check_target_module_exists(selection, name):
            continue
        if not isinstance(module, nn.Linear | Conv1D | nn.Conv2d):
            raise TargetError(
                f"target module {name} is a {type(module).__name__}; CDKA adapts linear layers "
                "(torch.nn.Linear, GPT-2's Conv1D) and torch.nn.Conv2d"
            )
        d_in, d_out = layer_dimensions(module)
        shapes.append(ModuleShape(name, d_in, d_out))
    if not shapes:
        linear = sorted({name.rsplit(".", 1)[-1] for name in linear_layers(model)})
        raise TargetError(
            f"target_modules={target_modules!r} selects no layer of {type(model).__name__}; "
            f"its linear layers are named: {', '.join(linear)}"
        )
    return shapes


def linear_layers(model: nn.Module) -> list[str]:
    """Names of a model's linear layers."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def listed(names: Sequence[str], most: int = 10) -> str:
    """Names for a message: the first ones, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _selection(
    model: nn.Module,
    target_modules: str | list[str] | None,
    task_kind: str | None,
    exclude_modules: str | list[str] | None,
) -> PeftConfig:
    if target_modules is None:
        model_type = BaseTuner.get_model_config(model).get("model_type")
        if model_type not in LORA_TARGETS:
            raise TargetError(
                f"PEFT has no default target modules for model type {model_type!r}; name them, or use 'all-linear'"
            )
        target_modules = list(LORA_TARGETS[model_type])
    selection = LoraConfig(
        target_modules=target_modules,
        exclude_modules=exclude_modules,
        task_type=PEFT_TASKS.get(task_kind or ""),
    )
    return _maybe_include_all_linear_layers(selection, model)
