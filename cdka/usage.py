"""Which adapted layers a training step uses, and which large weights no adapter reaches."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig

from .counts import ModuleShape
from .shapes import meta_model
from .steps import TrainingStep, depth_of, fake_inputs, input_shapes, place, with_depth

# Layers beyond this depth are like those before.
_DEEP = 4


def unused_layers(config: PretrainedConfig, task_kind: str, shapes: Iterable[ModuleShape]) -> list[str]:
    """Names of the layers whose weights get no gradient in a training step, so that an adapter there would not train.

    Runs one step on tensors without storage. Deep models are judged by a shallow version: a layer is unused if all
    layers of its name, but for the numbers in it, are. A layer is taken to be used if the step cannot be run.
    """
    names = [shape.name for shape in shapes]
    is_deep = depth_of(config) > _DEEP
    key = _pattern if is_deep else str
    keys = {key(name) for name in names}
    try:
        small = with_depth(config, _DEEP) if is_deep else config
        model = meta_model(small, task_kind)
        there = dict(model.named_modules())
        with FakeTensorMode():
            place(model)
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            weights = {name: there[name].get_parameter("weight") for name in there if key(name) in keys}
            for weight in weights.values():
                weight.requires_grad_(True)
            model.train()
            inputs = fake_inputs(input_shapes(small, task_kind, TrainingStep(batch_size=2, length=8)))
            loss = model(**inputs).loss
            if loss.requires_grad:
                loss.backward()
    except Exception:  # a model's forward pass may raise anything
        return []
    used = {key(name) for name, weight in weights.items() if weight.grad is not None}
    seen = {key(name) for name in weights}
    return [name for name in names if key(name) in seen - used]


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def expert_weights(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters in weights of three dimensions, which hold one matrix per expert, by name without numbers.

    An adapter of linear layers does not reach them.
    """
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 3 and "expert" in name:
            kind = _pattern(name).replace("#", "*")
            found[kind] = found.get(kind, 0) + parameter.numel()
    return found
