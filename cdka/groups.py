"""Compute layers that share an input, such as query, key and value, together in training.

In addition to the frozen layers' own traffic, a group of k layers of width d reads and writes, per layer and in the
units of ``fused.py``, ``2 + 1/k`` forward and ``5/k`` backward; a layer alone needs 3 and 5 (terms in K/d left out).
x is read once for all layers, and dx is accumulated in place, where autograd would sum k tensors
(``benchmarks/traffic.py``).

The first layer called computes the outputs of the whole group. Each other layer takes its output if nothing that the
output depends on has changed. Groups work only in training, and not under saved-tensor hooks: activation checkpointing
repeats a part of the forward pass, which must not depend on outputs computed outside that part.

A group is one node of the autograd graph. As for any node, a second backward pass through it (one for query, then one
for key) needs ``retain_graph``. A layer whose ``group`` is ``None`` is computed alone.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .fused import (
    cast,
    compute_dtype,
    expanded,
    expands,
    frozen_output,
    kept_for_backward,
    plain,
    up_gradients,
    without_autocast,
)

# Names of layers that share an input in transformers' models.
SHARING: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
    ("wi_0", "wi_1"),
    ("w1", "w3"),
)
# In cross-attention only key and value share an input: the encoder's output.
CROSS_ATTENTION = re.compile(r"cross|enc(oder)?_?dec|encoder_attn", re.IGNORECASE)


class LayerTensors(NamedTuple):
    """What a layer's output depends on besides its input; shapes as in :func:`cdka.fused.fused`."""

    A: Tensor
    B: Tensor
    scale: float
    weight: Tensor
    bias: Tensor | None


class GroupedLayer(Protocol):
    """A layer that can be computed with others."""

    def shared_tensors(self, x: Tensor) -> LayerTensors | None:
        """What the layer's output for x depends on; ``None`` if the layer must be computed alone."""


class _Pass:
    """One computation of a group. After its backward pass, its outputs must not be used by a later call."""

    differentiated = False


@dataclass(frozen=True)
class _Ready:
    """A layer's output that was computed before the layer was called."""

    y: Tensor
    x: Tensor
    tensors: LayerTensors
    state: tuple[Any, ...]
    computed_in: _Pass

    def is_for(self, x: Tensor, tensors: LayerTensors) -> bool:
        """Whether the layer would compute this output for x: no tensor was replaced or changed."""
        return (
            x is self.x
            and not self.computed_in.differentiated
            and tensors.scale == self.tensors.scale
            and all(a is b for a, b in zip(_found(tensors), _found(self.tensors), strict=True))
            and _state(x, tensors) == self.state
        )


class _OfThread(threading.local):
    """Outputs by layer; only the thread that computed them can take them."""

    def __init__(self) -> None:
        self.ready: dict[int, _Ready] = {}


class LayerGroup:
    """The adapted layers of one module that share an input.

    Copied and unpickled layers have no group and are computed alone.
    """

    def __init__(self, layers: Iterable[GroupedLayer]) -> None:
        # Weak references, so that a dropped model is freed at once, without the garbage collector.
        self._layers = [weakref.ref(layer) for layer in layers]
        self._waiting = _OfThread()

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    @property
    def layers(self) -> list[GroupedLayer]:
        """The layers that are computed together."""
        return [layer for layer in (reference() for reference in self._layers) if layer is not None]

    def clear(self) -> None:
        """Drop the outputs that no layer has taken, with the graph that they keep alive."""
        self._waiting.ready.clear()

    def output(self, layer: GroupedLayer, x: Tensor, tensors: LayerTensors) -> Tensor | None:
        """The layer's output for x, or ``None`` if it has to be computed alone."""
        waiting = self._waiting.ready
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            waiting.clear()
            return None
        ready = waiting.pop(id(layer), None)
        if ready is not None:
            if ready.is_for(x, tensors):
                return ready.y
            self._remove({id(layer)})
            return None
        # These layers were not called after their outputs were computed: remove them from the group.
        self._remove(set(waiting))
        waiting.clear()
        layers = self.layers
        if not any(other is layer for other in layers):  # removed, or a replica
            return None
        together = [(layer, tensors)]
        for other in layers:
            theirs = None if other is layer else other.shared_tensors(x)
            if theirs is not None and _fit(x, tensors, theirs):
                together.append((other, theirs))
        if len(together) == 1 or not _fit(x, tensors, tensors):
            return None
        computed_in = _Pass()
        own, *others = grouped(x, [theirs for _, theirs in together], computed_in)
        for (other, theirs), y in zip(together[1:], others, strict=True):
            waiting[id(other)] = _Ready(y, x, theirs, _state(x, theirs), computed_in)
        return own

    def _remove(self, keys: set[int]) -> None:
        if keys:
            self._layers = [weakref.ref(layer) for layer in self.layers if id(layer) not in keys]


def group_layers(model: nn.Module, kind: type[nn.Module]) -> list[LayerGroup]:
    """Group the layers of ``kind`` that share an input, as told by their names; sets their ``group``."""
    groups = []
    for path, parent in model.named_modules():
        children = dict(parent.named_children())
        for names in SHARING:
            if CROSS_ATTENTION.search(path):
                names = names[1:] if len(names) == 3 else names
            layers: list[Any] = [children[name] for name in names if isinstance(children.get(name), kind)]
            if len(layers) > 1:
                group = LayerGroup(layers)
                for layer in layers:
                    layer.group = group
                groups.append(group)
    return groups


def _found(tensors: LayerTensors) -> tuple[Tensor | None, ...]:
    return tensors.A, tensors.B, tensors.weight, tensors.bias


def _state(x: Tensor, tensors: LayerTensors) -> tuple[Any, ...]:
    """What an output depends on besides the tensors' identity: contents, gradient state and precision."""
    present = [t for t in (x, *_found(tensors)) if t is not None]
    places = [0 if isinstance(t, FakeTensor) else t.data_ptr() for t in present]
    return compute_dtype(x), x.grad_fn, *places, *((t._version, t.requires_grad) for t in present)


def _fit(x: Tensor, first: LayerTensors, other: LayerTensors) -> bool:
    """Whether ``other`` can join ``first``: trained, unsharded, on x's device, with the same r2, and with B expanded.

    Sharded weights are complete only while their layer is called; before that, their shapes fail this check.
    """
    A, B, weight = other.A, other.B, other.weight
    if A.dim() != 3 or B.dim() != 3 or not (A.requires_grad and B.requires_grad):
        return False
    r, r1, n = A.shape
    return (
        n == first.A.shape[2]
        and n * B.shape[2] == x.shape[-1]
        and weight.shape == (B.shape[1] * r1, x.shape[-1])
        and x.device == A.device == weight.device
        and expands(A.device.type, r, r1, B.shape[2])
    )


def grouped(x: Tensor, layers: Sequence[LayerTensors], computed_in: _Pass | None = None) -> tuple[Tensor, ...]:
    """``x W_k^T + b_k + scale_k * x dW_k^T`` for every layer k; precisions and gradients as :func:`cdka.fused.fused`.

    Args:
        x: ``(..., d_in)``.
        layers: with the same r2, and factors that require gradients.
        computed_in: marked when the outputs are differentiated.

    Returns:
        ``(..., d_out_k)`` for every layer.
    """
    scales = tuple(layer.scale for layer in layers)
    tensors = [t for layer in layers for t in _found(layer)]
    state = computed_in or _Pass()
    outputs: tuple[Tensor, ...] = _GroupedKronLinear.apply(x.to(compute_dtype(x)), state, scales, *tensors)  # type: ignore[no-untyped-call]
    return outputs


class _GroupedKronLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, computed_in: _Pass, scales: tuple[float, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        A, B, weights, biases = (tensors[k::4] for k in range(4))
        dtype, n = x.dtype, A[0].shape[2]
        rows = x.reshape(-1, x.shape[-1])
        # (N, r2, all layers' r*r1): one product reads x for all layers.
        sizes, r2 = [a.shape[0] * a.shape[1] for a in A], x.shape[-1] // n
        T = torch.mm(rows.reshape(-1, n), _all_rows(A, dtype).t()).view(len(rows), r2, sum(sizes))
        parts = [part.reshape(len(rows), r2 * size) for part, size in zip(torch.split(T, sizes, 2), sizes, strict=True)]
        outputs, kept = [], []
        for a, b, weight, bias, part, scale in zip(A, B, weights, biases, parts, scales, strict=True):
            up = expanded(cast(b, dtype), a.shape[1])
            y: Any = frozen_output(x, weight, bias)
            y.addmm_(part, up, alpha=scale)
            outputs.append(y.view(*x.shape[:-1], y.shape[1]).data)  # a view could not be changed in place
            kept.append(kept_for_backward(up, a.shape[1], len(rows)))
        ctx.computed_in, ctx.scales = computed_in, scales
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *A, *B, *weights, *parts, *kept)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor | None) -> Any:
        ctx.computed_in.differentiated = True
        x, *saved = ctx.saved_tensors
        # A layer whose output was not used has no gradient.
        count = len(dy)
        used = [k for k in range(count) if dy[k] is not None]
        layers = [(dy[k], ctx.scales[k], *saved[k::count]) for k in used]
        if not layers:
            return (None,) * (3 + 4 * count)
        if torch.is_grad_enabled():
            dx, dA, dB = _recorded_gradients(x, layers, ctx.needs_input_grad[0])
        else:
            with without_autocast(x.device.type):
                dx, dA, dB = _gradients(x, layers, ctx.needs_input_grad[0])
        gradients: list[Tensor | None] = [None] * (4 * count)
        for k, for_A, for_B in zip(used, dA, dB, strict=True):
            gradients[4 * k : 4 * k + 2] = for_A, for_B
        return dx, None, None, *gradients


_Gradients = tuple[Tensor | None, Sequence[Tensor], Sequence[Tensor]]


def _gradients(x: Tensor, layers: Sequence[tuple[Any, ...]], need_x: bool) -> _Gradients:
    """The gradients of x and all factors; they cannot be differentiated again."""
    dtype = x.dtype
    dx: Tensor | None = None
    dT, dB = [], []
    for dy, scale, A, B, weight, T, up in layers:
        rows = cast(dy, dtype).reshape(-1, dy.shape[-1]).contiguous()
        for_T, for_B = up_gradients(rows, T, cast(B, dtype), A.shape[1], up, (True, True))
        dT.append(for_T)
        dB.append(for_B.mul_(scale))
        if need_x:
            W = cast(weight, dtype)
            dx = torch.mm(rows, W) if dx is None else dx.addmm_(rows, W)
    scales, A = [layer[1] for layer in layers], [layer[2] for layer in layers]
    n = A[0].shape[2]
    all_dT = torch.cat(dT, 1)
    all_dA = torch.split(torch.mm(all_dT.t(), x.reshape(-1, n)), [a.shape[0] * a.shape[1] for a in A])
    dA = [part.view(a.shape) * scale for part, a, scale in zip(all_dA, A, scales, strict=True)]
    if dx is not None:
        scaled = [a * scale for a, scale in zip(A, scales, strict=True)]
        dx.view(-1, n).addmm_(all_dT, _all_rows(scaled, dtype))
        dx = dx.view(x.shape)
    return dx, dA, dB


def _recorded_gradients(x: Tensor, layers: Sequence[tuple[Any, ...]], need_x: bool) -> _Gradients:
    """The gradients as differentiable operations, for double backward."""
    dtype = x.dtype
    outputs, cotangents, factors = [], [], []
    # Aliases: a factor that two layers share, or that depends on x, must not be counted twice.
    x = x.view_as(x)
    for dy, scale, A, B, weight, *_ in layers:
        own = [A.view_as(A), B.view_as(B)]
        outputs.append(plain(x, own[0].to(dtype), own[1].to(dtype), scale, weight.to(dtype)))
        cotangents.append(dy.to(dtype))
        factors += own
    inputs = [x, *factors] if need_x else factors
    found = torch.autograd.grad(outputs, inputs, cotangents, create_graph=True)
    dx = found[0] if need_x else None
    rest = found[1:] if need_x else found
    return dx, rest[::2], rest[1::2]


def _all_rows(A: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The rows of every layer's A, ``(sum of r*r1, n)``."""
    return torch.cat([cast(a, dtype).reshape(-1, a.shape[2]) for a in A])
