"""Layers that see the same input, such as query, key and value: their training step is computed together.

Beyond what the frozen layers of a group move by themselves, k layers of width d with their adapters read and write, per
layer and in the units of ``fused.py``, ``2 + 1/k`` forward and ``5/k`` backward, where a layer alone has 3 and 5: x is
read once for all, and dx is accumulated in place, where autograd would sum k tensors (``benchmarks/traffic.py``).

The layer that is called first computes the outputs of all and keeps them for the others, which take theirs if nothing
that it depends on has changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

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

# Names of layers that see the same input, in the models of transformers.
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
# In cross-attention only key and value see the same: the encoder's output.
CROSS_ATTENTION = re.compile(r"cross|enc_?dec|encoder_attn", re.IGNORECASE)


class LayerTensors(NamedTuple):
    """What one layer's output is computed from, beside its input; shapes as in :func:`cdka.fused.fused`."""

    A: Tensor
    B: Tensor
    scale: float
    weight: Tensor
    bias: Tensor | None


class GroupedLayer(Protocol):
    """A layer that can be computed with others."""

    def shared_tensors(self, x: Tensor) -> LayerTensors | None:
        """What its output for x is computed from; ``None`` where the layer has to be called by itself."""


class _Pass:
    """One computation of a group; once differentiated, its outputs are of no use to a later call."""

    differentiated = False


@dataclass(frozen=True)
class _Ready:
    """A layer's output that was computed before the layer was called."""

    y: Tensor
    x: Tensor
    tensors: LayerTensors
    versions: tuple[int, ...]
    computed_in: _Pass

    def is_for(self, x: Tensor, tensors: LayerTensors) -> bool:
        """Whether the layer, called with x, would compute the same: nothing was replaced or changed in place."""
        return (
            x is self.x
            and not self.computed_in.differentiated
            and tensors.scale == self.tensors.scale
            and all(a is b for a, b in zip(_found(tensors), _found(self.tensors), strict=True))
            and _versions(x, tensors) == self.versions
        )


class LayerGroup:
    """The adapted layers of one module that see the same input."""

    def __init__(self, layers: Iterable[GroupedLayer]) -> None:
        self.layers = list(layers)
        self._ready: dict[int, _Ready] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers, "_ready": {}}

    def output(self, layer: GroupedLayer, x: Tensor, tensors: LayerTensors) -> Tensor | None:
        """The layer's output for x, or ``None`` if it has to be computed alone."""
        ready = self._ready.pop(id(layer), None)
        if ready is not None:
            if ready.is_for(x, tensors):
                return ready.y
            self._remove([layer])
            return None
        # What was computed for a layer that was then not called was wasted: not again.
        self._remove([other for other in self.layers if id(other) in self._ready])
        self._ready.clear()
        if not any(other is layer for other in self.layers):  # removed, or another thread's replica
            return None
        together = {id(layer): (layer, tensors)}
        for other in self.layers:
            theirs = None if other is layer else other.shared_tensors(x)
            if theirs is not None and _fit(tensors, theirs):
                together[id(other)] = (other, theirs)
        if len(together) == 1 or not _fit(tensors, tensors):
            return None
        computed_in = _Pass()
        outputs = grouped(x, [theirs for _, theirs in together.values()], computed_in)
        for (key, (_, theirs)), y in zip(together.items(), outputs, strict=True):
            self._ready[key] = _Ready(y, x, theirs, _versions(x, theirs), computed_in)
        return self._ready.pop(id(layer)).y

    def _remove(self, layers: Sequence[GroupedLayer]) -> None:
        # Activation checkpointing runs a forward pass twice and needs the same tensors saved both times.
        if layers and torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
            self.layers = [layer for layer in self.layers if all(layer is not other for other in layers)]


def group_layers(model: nn.Module, kind: type[nn.Module]) -> None:
    """Give the layers of ``kind`` that see the same input, by their names, a group as their ``group``."""
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


def _found(tensors: LayerTensors) -> tuple[Tensor | None, ...]:
    return tensors.A, tensors.B, tensors.weight, tensors.bias


def _versions(x: Tensor, tensors: LayerTensors) -> tuple[int, ...]:
    return tuple(t._version for t in (x, *_found(tensors)) if t is not None)


def _fit(first: LayerTensors, other: LayerTensors) -> bool:
    """Whether the two can be computed together: trained on one device, with the same blocks of x and B expanded."""
    r, r1, n = other.A.shape
    return (
        n == first.A.shape[2]
        and other.A.device == first.A.device
        and other.A.requires_grad
        and other.B.requires_grad
        and expands(other.A.device.type, r, r1, other.B.shape[2])
    )


def grouped(x: Tensor, layers: Sequence[LayerTensors], computed_in: _Pass | None = None) -> tuple[Tensor, ...]:
    """``x W_k^T + b_k + scale_k * x dW_k^T`` for every layer k; precisions and gradients as :func:`cdka.fused.fused`.

    Args:
        x: ``(..., d_in)``.
        layers: with the same r2, and factors that require gradients.
        computed_in: is told when the outputs are differentiated.

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
        # (N, r2, all layers' r*r1): one product reads x for all.
        T = torch.mm(rows.reshape(-1, n), _all_rows(A, dtype).t()).view(len(rows), x.shape[-1] // n, -1)
        parts = [part.reshape(len(rows), -1) for part in torch.split(T, [a.shape[0] * a.shape[1] for a in A], 2)]
        outputs, kept = [], []
        for a, b, weight, bias, part, scale in zip(A, B, weights, biases, parts, scales, strict=True):
            up = expanded(cast(b, dtype), a.shape[1])
            y: Any = frozen_output(x, weight, bias)
            y.addmm_(part, up, alpha=scale)
            outputs.append(y.view(*x.shape[:-1], -1).data)  # a view could not be changed in place
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
    """The gradients of x and all factors, without a graph of their own."""
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
    for dy, scale, A, B, weight, *_ in layers:
        outputs.append(plain(x, A.to(dtype), B.to(dtype), scale, weight.to(dtype)))
        cotangents.append(dy.to(dtype))
        factors += [A, B]
    inputs = [x, *factors] if need_x else factors
    found = torch.autograd.grad(outputs, inputs, cotangents, create_graph=True)
    dx = found[0] if need_x else None
    rest = found[1:] if need_x else found
    return dx, rest[::2], rest[1::2]


def _all_rows(A: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The rows of every layer's A, ``(sum of r*r1, n)``."""
    return torch.cat([cast(a, dtype).reshape(-1, a.shape[2]) for a in A])
