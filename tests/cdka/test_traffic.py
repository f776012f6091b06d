"""The model of activations moved, against what the fused function's operations really read and write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.traffic import cdka_traffic
from cdka import fused as module
from cdka.fused import expands, fused


class Touched(TorchDispatchMode):
    """Counts the numbers of activations (tensors with a row for each token) that operations read and write."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.numbers = tokens, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.inplace_view in func.tags or func.is_view:
            return result
        for tensor in [*args, *(result if isinstance(result, (tuple, list)) else [result])]:
            # Tokens are a prime: only activations have a multiple of so many numbers.
            if isinstance(tensor, torch.Tensor) and tensor.numel() % self.tokens == 0:
                self.numbers += tensor.numel()
        return result


@pytest.mark.parametrize(("structure", "limit"), [((2, 8, 4), 64), ((2, 2, 8), 64), ((2, 8, 4), 0), ((4, 16, 4), 0)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_model_of_activations_moved_is_what_operations_touch(
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


@pytest.mark.parametrize("structure", [(1, 1, 8), (2, 2, 8), (2, 8, 4), (4, 16, 4), (8, 4, 4)])
def test_a_gpu_expands_what_is_bound_by_memory_there(structure: tuple[int, int, int]) -> None:
    r1, r2, r = structure
    assert expands("cuda", r, r1, r2) == (r * r1 * r2 <= 256)
    assert expands("cuda", 16, 4, 16) is False
    assert expands("cuda", 512, 1, 1) is True
