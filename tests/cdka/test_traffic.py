"""The model of activation traffic, compared with what the fused function's operations read and write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.traffic import cdka_traffic, grouped_traffic
from cdka import fused as module
from cdka.fused import expands, fused
from cdka.groups import LayerTensors, grouped


class Touched(TorchDispatchMode):
    """Counts the numbers of activations (tensors with a row for each token) that operations read and write."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.numbers = tokens, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.inplace_view in func.tags or func.is_view or func is torch.ops.aten._unsafe_view.default:
            return result
        for tensor in tree_leaves([args, result]):
            # The number of tokens is prime, so only the sizes of activations are multiples of it.
            if isinstance(tensor, torch.Tensor) and tensor.numel() % self.tokens == 0:
                self.numbers += tensor.numel()
        return result


@pytest.mark.parametrize(("structure", "limit"), [((2, 8, 4), 64), ((2, 2, 8), 64), ((2, 8, 4), 0), ((4, 16, 4), 0)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_modelled_traffic_of_a_layer_equals_the_counted_traffic(
    structure: tuple[int, int, int], limit: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    r1, r2, r = structure
    tokens, d = 521, 128
    monkeypatch.setitem(module.LARGEST_EXPANSION, "cpu", limit)
    expanded = expands("cpu", r, r1, r2)
    assert expanded == (limit > 0)
    x = torch.randn(tokens, d, requires_grad=True)
    A, B = torch.randn(r, r1, d // r2, requires_grad=True), torch.randn(r, d // r1, r2, requires_grad=True)
    W, b = torch.randn(d, d), torch.randn(d) if bias else None
    cotangent = torch.randn(tokens, d)
    with Touched(tokens) as forward:
        y = fused(x, A, B, 0.5, W, b)
    with Touched(tokens) as backward:
        y.backward(cotangent)
    # The frozen layer reads x and writes y, then reads dy and writes dx. Autograd keeps dx as x.grad without a copy.
    unit = tokens * d
    found = forward.numbers / unit - 2, backward.numbers / unit - 2
    model = cdka_traffic(d, r1, r2, r, expanded=expanded, bias=bias)
    assert found == pytest.approx((model.forward, model.backward), abs=1e-6)


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("structure", [(1, 1, 8), (2, 2, 8), (2, 8, 4)])
def test_the_modelled_traffic_of_a_group_equals_the_counted_traffic(
    structure: tuple[int, int, int], layers: int
) -> None:
    r1, r2, r = structure
    tokens, d = 521, 128
    x = torch.randn(tokens, d, requires_grad=True)
    made = [
        LayerTensors(
            torch.randn(r, r1, d // r2, requires_grad=True),
            torch.randn(r, d // r1, r2, requires_grad=True),
            0.5,
            torch.randn(d, d),
            None,
        )
        for _ in range(layers)
    ]
    frozen = [nn.functional.linear(x, layer.weight) for layer in made]
    cotangents = [torch.randn(tokens, d) for _ in made]
    with Touched(tokens) as alone:
        torch.autograd.backward(frozen, cotangents)
    x.grad = None
    with Touched(tokens) as forward:
        outputs = grouped(x, made)
    with Touched(tokens) as backward:
        torch.autograd.backward(outputs, cotangents)
    unit = tokens * d * layers
    found = forward.numbers / unit - 2, (backward.numbers - alone.numbers) / unit
    model = grouped_traffic(d, r1, r2, r, layers)
    assert found == pytest.approx((model.forward, model.backward), abs=1e-6)


@pytest.mark.parametrize("structure", [(1, 1, 8), (2, 2, 8), (2, 8, 4), (4, 16, 4), (8, 4, 4)])
def test_a_gpu_expands_inner_sizes_up_to_256(structure: tuple[int, int, int]) -> None:
    r1, r2, r = structure
    assert expands("cuda", r, r1, r2) == (r * r1 * r2 <= 256)
    assert expands("cuda", 16, 4, 16) is False
    assert expands("cuda", 512, 1, 1) is True
