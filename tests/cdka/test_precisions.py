"""Precisions, autocast, dropout and quantised bases use the fused path, and no activation becomes fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import cdka
from cdka import fused as module
from cdka import modules
from cdka.fused import fused, plain

D_IN, D_OUT, TOKENS = 32, 48, 26
STRUCTURES = [(1, 1, 4), (2, 8, 4), (4, 16, 4)]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(D_IN, D_OUT, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def adapted(structure: tuple[int, int, int], dtype: torch.dtype, dropout: float = 0.0, fp32: bool = True) -> Any:
    r1, r2, r = structure
    torch.manual_seed(0)
    options: dict[str, Any] = {"target_modules": ["linear"], "init_weights": False, "dropout": dropout}
    return get_peft_model(
        Net(dtype), cdka.CdkaConfig(r1=r1, r2=r2, r=r, **options), autocast_adapter_dtype=fp32
    ).train()


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, by precision."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(t, Tensor):
                self.numbers[t.dtype] = max(self.numbers.get(t.dtype, 0), t.numel())
        return result


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    calls: list[dict[str, Any]] = []

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        calls.append({"weight": len(args) > 4 and args[4] is not None, **kwargs})
        return fused(*args, **kwargs)

    monkeypatch.setattr(modules, "fused", counting)
    return calls


# Precision of checkpoint and input, factors in fp32, autocast. BERT, MiniLM and T5 are fp32 checkpoints.
SETTINGS = {
    "fp32": (FP32, FP32, True, False),
    "fp32 checkpoint, autocast": (FP32, FP32, True, True),
    "fp32 checkpoint, autocast, 16-bit input": (FP32, BF16, True, True),
    "bf16 checkpoint, autocast": (BF16, BF16, True, True),
    "bf16 checkpoint, autocast, fp32 input": (BF16, FP32, True, True),
    "bf16 checkpoint, fp32 factors": (BF16, BF16, True, False),
    "bf16 checkpoint, bf16 factors": (BF16, BF16, False, False),
    "fp16 checkpoint, fp32 factors": (FP16, FP16, True, False),
    "fp16 checkpoint, autocast": (FP16, FP16, True, True),
}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_every_setting_is_fused_and_correct(
    structure: tuple[int, int, int], setting: str, dropout: float, fused_calls: list[Any]
) -> None:
    """Against the plain formula in fp64 on the same (dropped out) input, to 16-bit accuracy."""
    dtype, given, fp32_factors, autocast = SETTINGS[setting]
    model = adapted(structure, dtype, dropout, fp32_factors)
    x = torch.randn(2, TOKENS // 2, D_IN).to(given).requires_grad_()
    torch.manual_seed(5)
    with torch.autocast("cpu", BF16) if autocast else nullcontext():
        y = model(x)
    assert y.dtype == (BF16 if autocast else dtype)
    (call,) = fused_calls
    assert call["weight"]
    assert (call.get("features") is not None) == (dropout > 0)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)

    layer = model.base_model.model.linear
    A, B = layer.cdka_A["default"], layer.cdka_B["default"]
    double = [t.detach().double().requires_grad_() for t in (x, A, B)]
    seen = double[0]
    if dropout:
        kept = (call.get("features") != 0).double() / (1 - dropout)
        seen = double[0] * kept
    W, b = layer.base_layer.weight.double(), layer.base_layer.bias.double()
    expected = nn.functional.linear(double[0], W, b) + plain(seen, double[1], double[2], layer.scaling["default"])
    expected.backward(cotangent.double())
    loose = 2e-5 if setting == "fp32" else 3e-2
    for ours, theirs in [(y, expected), *((t.grad, d.grad) for t, d in zip((x, A, B), double, strict=True))]:
        assert (ours.double() - theirs).norm() <= loose * theirs.norm()
    assert (x.grad.dtype, A.grad.dtype, B.grad.dtype) == (x.dtype, A.dtype, B.dtype)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("setting", [s for s, (_, given, _, _) in SETTINGS.items() if given != FP32])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_no_activation_becomes_fp32(structure: tuple[int, int, int], setting: str, dropout: float) -> None:
    dtype, given, fp32_factors, autocast = SETTINGS[setting]
    model = adapted(structure, dtype, dropout, fp32_factors)
    x = torch.randn(400, D_IN).to(given).requires_grad_()
    with Largest() as largest:
        with torch.autocast("cpu", BF16) if autocast else nullcontext():
            y = model(x)
        y.backward(torch.ones_like(y))
    assert largest.numbers[y.dtype] >= 400 * D_IN
    # At most the expanded B is fp32.
    assert largest.numbers.get(FP32, 0) <= 256 * D_OUT < 400 * D_IN


def test_an_input_of_another_precision_raises_as_in_any_linear_layer() -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        adapted((2, 8, 4), BF16)(torch.randn(3, D_IN))


class Quantised(nn.Linear):
    """Stands in for a 4-bit layer: callers can use its output, but cannot multiply with its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias).view_as(x[..., :1].expand(*x.shape[:-1], D_OUT))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_base_layer_that_is_not_fused_gets_the_adapter_in_one_product(
    structure: tuple[int, int, int], dropout: float, fused_calls: list[Any]
) -> None:
    model = adapted(structure, BF16, dropout)
    reference = model.base_model.model.linear.base_layer
    quantised = Quantised(D_IN, D_OUT, dtype=BF16).requires_grad_(False)
    quantised.load_state_dict(reference.state_dict())
    model.base_model.model.linear.base_layer = quantised
    x = torch.randn(400, D_IN).to(BF16).requires_grad_()
    with Largest() as largest:
        y = model(x)
        y.backward(torch.ones_like(y))
    (call,) = fused_calls
    assert not call["weight"]
    assert call["base"].dtype == BF16
    assert largest.numbers.get(FP32, 0) <= 256 * D_OUT
    if not dropout:
        model.base_model.model.linear.base_layer = reference
        again = x.detach().requires_grad_()
        expected = model(again)
        expected.backward(torch.ones_like(y))
        assert (y - expected).norm() <= 1e-2 * expected.norm()
        assert (x.grad - again.grad).norm() <= 2e-2 * again.grad.norm()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradient_checkpointing_is_fused_and_gives_the_same_bits(dropout: float, fused_calls: list[Any]) -> None:
    gradients = []
    for again in (False, True):
        model = adapted((2, 8, 4), FP32, dropout)
        x = torch.randn(TOKENS, D_IN, requires_grad=True)
        torch.manual_seed(3)
        y = checkpoint(model, x, use_reentrant=False) if again else model(x)
        y.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(fused_calls) == 3
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("structure", [*STRUCTURES, (2, 8, 16)])
def test_two_steps_give_the_same_bits(structure: tuple[int, int, int]) -> None:
    """No result depends on the order in which parts of a sum arrive."""
    gradients = []
    for _ in range(2):
        model = adapted(structure, FP32)
        torch.manual_seed(1)
        model(torch.randn(517, D_IN)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("structure", [(1, 1, 8), (2, 8, 4), (4, 16, 4), (4, 16, 8), (2, 2, 3)])
@pytest.mark.parametrize("tokens", [1, 127, 129])
def test_shapes_and_precisions_hold_on_tensors_without_storage(
    dtype: torch.dtype, structure: tuple[int, int, int], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meta tensors stand in for a GPU's: they have CUDA's limit of expansion, and products of wrong shapes fail."""
    r1, r2, r = structure
    d_in, d_out = 320, 192
    expansions: list[int] = []
    original = module.expanded
    monkeypatch.setattr(module, "expanded", lambda B, r1: (expansions.append(r1), original(B, r1))[1])
    x = torch.empty(tokens, d_in, device="meta", dtype=dtype, requires_grad=True)
    W = torch.empty(d_out, d_in, device="meta", dtype=dtype)
    A = torch.empty(r, r1, d_in // r2, device="meta", requires_grad=True)
    B = torch.empty(r, d_out // r1, r2, device="meta", requires_grad=True)
    with Largest() as largest:
        y = fused(x, A, B, 0.5, W)
        y.backward(torch.empty_like(y))
    assert (y.shape, y.dtype) == ((tokens, d_out), dtype)
    for t in (x, A, B):
        assert (t.grad.shape, t.grad.dtype, t.grad.device.type) == (t.shape, t.dtype, "meta")
    assert bool(expansions) == (r * r1 * r2 <= 256)
    if tokens > 100:
        assert largest.numbers[dtype] >= tokens * d_out
