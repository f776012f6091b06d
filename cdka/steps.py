"""A training step on tensors without storage, and shallow versions of deep models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

_DEPTHS = (
    "num_hidden_layers",
    "num_layers",
    "num_decoder_layers",
    "n_layer",
    "n_layers",
    "decoder_layers",
    "encoder_layers",
)


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """What a training step's memory depends on besides the model and its adapter.

    Args:
        batch_size: examples that pass through the model at once.
        length: tokens of an example.
        precision: ``fp32`` or ``bf16`` (autocast).
        quantization: ``none`` or ``4bit``, of the base model's linear layers.
        optimizer: one of :data:`OPTIMIZER_STATES`.
        gradient_checkpointing: whether activations within a layer are recomputed instead of kept.
    """

    batch_size: int
    length: int
    precision: str = "fp32"
    quantization: str = "none"
    optimizer: str = "adamw_fused"
    gradient_checkpointing: bool = False


def depth_of(config: PretrainedConfig) -> int:
    """The number of a model's layers; 0 if its config does not say."""
    return max((getattr(config, name) for name in _depths_of(config)), default=0)


def _depths_of(config: PretrainedConfig) -> list[str]:
    return [name for name in _DEPTHS if isinstance(config.__dict__.get(name), int)]


def with_depth(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The config of a model that is alike but has this many layers."""
    values = config.to_dict()
    depth = depth_of(config)
    # Such as layer_types: one entry for each layer.
    per_layer = {k: v[:layers] for k, v in values.items() if isinstance(v, list) and len(v) == depth > layers}
    return type(config).from_dict(values | per_layer | dict.fromkeys(_depths_of(config), layers))


def fake_inputs(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A batch of these shapes, to be made within a ``FakeTensorMode``."""
    return {
        name: torch.empty(shape) if name == "pixel_values" else torch.zeros(shape, dtype=torch.long)
        for name, shape in shapes.items()
    }


def place(model: nn.Module) -> None:
    """Move parameters and buffers from the meta device to the (fake) CPU, so that operations run as on a CPU."""
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in moved:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    moved[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = moved[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def input_shapes(config: PretrainedConfig, task_kind: str, step: TrainingStep) -> dict[str, tuple[int, ...]]:
    """The shapes of a step's inputs by name."""
    tokens = (step.batch_size, step.length)
    if task_kind == "image_classification":
        vision = getattr(config, "vision_config", config)
        size, channels = getattr(vision, "image_size", 224), getattr(vision, "num_channels", 3)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return {"pixel_values": (step.batch_size, channels, height, width), "labels": (step.batch_size,)}
    if task_kind in ("causal_lm", "seq2seq_lm"):
        return {"input_ids": tokens, "labels": tokens}
    return {"input_ids": tokens, "labels": (step.batch_size,)}
