"""Estimate the memory of a training step from the shapes of its tensors, without allocating them."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig

from .config import CdkaConfig
from .counts import Configuration
from .shapes import meta_model, module_shapes
from .steps import TrainingStep, depth_of, fake_inputs, input_shapes, place, with_depth

# Bytes per parameter in 4-bit NormalFloat, one fp32 constant per 64 (arXiv 2305.14314, without double quantisation).
NF4_BYTES = 0.5 + 4 / 64
# States that an optimizer keeps for every trained parameter, in fp32.
OPTIMIZER_STATES = {"adamw": 2, "adamw_fused": 2, "adafactor": 0, "sgd": 1}

# Layers are alike: the difference in memory between these depths is extrapolated to the model's depth.
_SHALLOW, _DEEP = 2, 3


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Peak memory of a training in bytes, by purpose.

    ``weights`` is the base model, ``training`` the adapter with its gradients and optimizer states, ``activations``
    everything that lives only within a step.
    """

    weights: int
    training: int
    activations: int

    @property
    def peak(self) -> int:
        """The sum, in bytes."""
        return self.weights + self.training + self.activations


def estimate_memory(
    config: PretrainedConfig,
    task_kind: str,
    configuration: Configuration,
    step: TrainingStep,
    *,
    target_modules: str | list[str],
    model: nn.Module | None = None,
    heads: Collection[str] | None = None,
) -> MemoryEstimate:
    """Estimate the peak memory of fine-tuning with a CDKA adapter.

    Runs one forward and backward pass on tensors without storage and counts the bytes that would be alive. Does so for
    two shallow versions of the model and extrapolates the cost of a layer to the model's depth. Not included: the
    device's context, the allocator's fragmentation and the workspaces of libraries.

    Args:
        config: the base model's.
        task_kind: which AutoModel class the config becomes.
        configuration: component sizes of the adapter.
        step: batch, precision and optimizer.
        target_modules: where the adapter goes.
        model: ``meta_model(config, task_kind)``, if it is built already.
        heads: see :func:`~cdka.module_shapes`.

    Raises:
        CdkaError: transformers has no model of this kind for the config, or there are no layers to adapt.
    """
    full = meta_model(config, task_kind) if model is None else model
    shapes = module_shapes(full, target_modules, task_kind, heads=heads)
    # fp32 training widens a 16-bit checkpoint; autocast keeps its precision.
    own = getattr(config, "dtype", None)
    dtype = own if step.precision == "bf16" and isinstance(own, torch.dtype) else torch.float32
    weights = _weight_bytes(full, dtype, {s.name for s in shapes} if step.quantization == "4bit" else set())
    trained = configuration.parameters * 4 * (2 + OPTIMIZER_STATES[step.optimizer])
    depth = depth_of(config)

    def activations_of(config: PretrainedConfig) -> int:
        built: Any = meta_model(config, task_kind)
        names = [s.name for s in module_shapes(built, target_modules, task_kind, heads=heads)]
        sizes = CdkaConfig(r1=configuration.r1, r2=configuration.r2, r=configuration.r, target_modules=names)
        built.to(dtype).train()
        if step.gradient_checkpointing:
            built.activation_checkpointing_enable({"use_reentrant": False})
        adapted = get_peft_model(built, sizes, low_cpu_mem_usage=True)
        return _step_bytes(adapted, input_shapes(config, task_kind, step), step.precision)

    if depth <= _DEEP:
        activations = activations_of(config)
    else:
        first, second = (activations_of(with_depth(config, layers)) for layers in (_SHALLOW, _DEEP))
        activations = first + max(0, second - first) * (depth - _SHALLOW)
    return MemoryEstimate(weights, trained, activations)


def _weight_bytes(model: nn.Module, dtype: torch.dtype, quantised: set[str]) -> int:
    sizes = (
        p.numel() * (NF4_BYTES if name.removesuffix(".weight") in quantised else dtype.itemsize)
        for name, p in model.named_parameters()
    )
    return int(sum(sizes))


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that operations create and that are still referenced."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live = 0
        # Storages that exist before the step; views of them are not counted.
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet(t.untyped_storage() for t in there)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._watch(leaf.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self._live -= size


def _step_bytes(adapted: nn.Module, shapes: Mapping[str, tuple[int, ...]], precision: str) -> int:
    """The peak of live bytes within one step, without the adapter's gradients."""
    with FakeTensorMode():
        place(adapted)
        inputs = fake_inputs(shapes)
        with _LiveBytes([*adapted.parameters(), *adapted.buffers(), *inputs.values()]) as live:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = adapted(**inputs).loss
            loss.backward()
            del loss
    gradients = sum(p.numel() * p.element_size() for p in adapted.parameters() if p.requires_grad)
    found: int = max(0, live.peak - gradients)
    return found
