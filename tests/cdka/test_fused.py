"""The fused function against plain autograd, and what it keeps in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from cdka.fused import can_fuse, expands, fused, plain

STRUCTURES = [(1, 1, 8), (2, 2, 8), (2, 8, 4), (4, 16, 4), (8, 4, 1), (1, 16, 3)]  # (r1, r2, r)
D_IN, D_OUT, TOKENS = 64, 96, 10


def tensors(structure: tuple[int, int, int], bias: bool = True) -> list[torch.Tensor]:
    r1, r2, r = structure
    make = torch.Generator().manual_seed(0)
    shapes = [(2, TOKENS // 2, D_IN), (r, r1, D_IN // r2), (r, D_OUT // r1, r2), (D_OUT, D_IN)]
    x, A, B, W = (torch.randn(s, generator=make, dtype=torch.float64) for s in shapes)
    for t in (x, A, B):
        t.requires_grad_()
    return [x, A, B, W, *([torch.randn(D_OUT, generator=make, dtype=torch.float64)] if bias else [])]


def test_the_structures_cover_expanded_and_shuffled_products() -> None:
    ways = {expands("cpu", r, r1, r2) for r1, r2, r in STRUCTURES if r1 > 1}
    assert ways == {True, False}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("base", ["with bias", "without bias", "none"])
def test_equals_plain_autograd(structure: tuple[int, int, int], base: str) -> None:
    x, A, B, W, b = tensors(structure)
    weight = None if base == "none" else W
    bias = b if base == "with bias" else None
    cotangent = torch.randn(2, TOKENS // 2, D_OUT, dtype=torch.float64)
    answers = []
    for function in (fused, plain):
        y = function(x, A, B, 0.7, weight, bias)
        answers.append((y, *torch.autograd.grad(y, (x, A, B), cotangent)))
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wanted", [[0], [1], [2], [1, 2]])
def test_gradients_are_computed_only_for_what_needs_them(wanted: list[int]) -> None:
    inputs = tensors((4, 16, 4))
    every = torch.autograd.grad(plain(*inputs[:3], 0.5, *inputs[3:]).sum(), inputs[:3])
    for i in range(3):
        inputs[i] = inputs[i].detach().requires_grad_(i in wanted)
    fused(*inputs[:3], 0.5, *inputs[3:]).sum().backward()
    for i in range(3):
        if i in wanted:
            torch.testing.assert_close(inputs[i].grad, every[i])
        else:
            assert inputs[i].grad is None


# torch.func.jvp imports a part of torch that warns of its own use of torch.jit.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("structure", [(2, 2, 8), (4, 16, 4)])
def test_double_backward_and_functorch(structure: tuple[int, int, int]) -> None:
    x, A, B, W, _ = tensors(structure)
    small = x[:, :1].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda a: fused(a, A, B, 0.5, W).square(), [small])

    def layer(x: torch.Tensor) -> torch.Tensor:
        return fused(x, A, B, 0.5, W) if can_fuse(x, A, B, W) else plain(x, A, B, 0.5, W)

    rows = x.detach().view(-1, D_IN)
    jacobian = torch.func.vmap(torch.func.jacrev(layer))(rows)
    torch.testing.assert_close(jacobian[0] @ rows[0], layer(rows[0]))
    _, tangent = torch.func.jvp(layer, (rows,), (rows,))
    torch.testing.assert_close(tangent, layer(rows))


@contextmanager
def saved_bytes() -> Iterator[dict[int, int]]:
    """Bytes of every storage that is kept for the backward pass, by address."""
    kept: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(keep, lambda t: t):
        yield kept


@pytest.mark.parametrize("structure", STRUCTURES)
def test_only_the_input_and_T_are_kept_for_the_backward_pass(structure: tuple[int, int, int]) -> None:
    x, A, B, W, b = tensors(structure)
    with saved_bytes() as kept:
        fused(x, A, B, 0.5, W, b)
    for parameter in (A, B, W, b):
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    r1, r2, r = structure
    T = TOKENS * r * r1 * r2 * 8
    assert sum(kept.values()) <= x.untyped_storage().nbytes() + T


class Allocations(TorchDispatchMode):
    """The largest result of any operation, in elements."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else [result]:
            if isinstance(t, torch.Tensor):
                self.largest = max(self.largest, t.untyped_storage().nbytes() // t.element_size())
        return result


@pytest.mark.parametrize("structure", [(1, 1, 4), (2, 2, 4), (2, 8, 2), (4, 16, 2)])
def test_no_tensor_of_the_size_of_dW_is_allocated(structure: tuple[int, int, int]) -> None:
    r1, r2, r = structure
    d, tokens = 512, 8
    x = torch.randn(tokens, d, requires_grad=True)
    A = torch.randn(r, r1, d // r2, requires_grad=True)
    B = torch.randn(r, d // r1, r2, requires_grad=True)
    with Allocations() as allocations:
        fused(x, A, B, 0.5).sum().backward()
    assert tokens * d <= allocations.largest <= d * d // 8


def test_double_backward_works_if_only_the_base_output_needs_a_gradient() -> None:
    """This happens to a frozen adapter whose base layer has another, trained adapter."""
    x, A, B, _, _ = (t.detach() for t in tensors((2, 8, 4)))
    base = torch.randn(2, TOKENS // 2, D_OUT, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(fused(x, A, B, 0.5, base=base).square().sum(), base, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), base)
    torch.testing.assert_close(second, torch.full_like(base, 2.0))


@pytest.mark.parametrize("structure", [(1, 1, 8), (4, 16, 4)])
def test_a_backward_pass_within_autocast_keeps_the_precision_of_its_forward_pass(
    structure: tuple[int, int, int],
) -> None:
    x, A, B, W, b = (t.detach().float() for t in tensors(structure))
    inputs = [t.requires_grad_() for t in (x, A, B)]
    expected = torch.autograd.grad(fused(x, A, B, 0.5, W, b).sum(), inputs)
    y = fused(x, A, B, 0.5, W, b).sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(y, inputs)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("structure", [(1, 1, 8), (2, 2, 8), (4, 16, 4)])
@pytest.mark.parametrize("with_base", [True, False])
def test_the_output_may_be_changed_in_place(structure: tuple[int, int, int], with_base: bool) -> None:
    x, A, B, W, _ = tensors(structure)
    y = fused(x, A, B, 0.5, W if with_base else None)
    assert y._base is None
    y += 1
    y.relu_()
    got = torch.autograd.grad(y.sum(), (x, A, B))
    expected = (plain(x, A, B, 0.5, W if with_base else None) + 1).relu()
    for ours, theirs in zip(got, torch.autograd.grad(expected.sum(), (x, A, B)), strict=True):
        torch.testing.assert_close(ours, theirs)
