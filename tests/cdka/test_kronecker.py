"""The algebra, against ``torch.kron``."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdka import CdkaError, kron_delta, kron_linear


def factors(r: int, r1: int, r2: int, m: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(r, r1, n, generator=generator, dtype=torch.float64)
    B = torch.randn(r, m, r2, generator=generator, dtype=torch.float64)
    return A, B


def dense(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    return sum((torch.kron(b, a) for a, b in zip(A, B, strict=True)), torch.zeros((), dtype=A.dtype))


sizes = st.integers(1, 5)


@given(r=sizes, r1=sizes, r2=sizes, m=sizes, n=sizes, batch=st.integers(1, 4), scale=st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_equals_the_dense_product_in_forward_and_gradients(
    r: int, r1: int, r2: int, m: int, n: int, batch: int, scale: float
) -> None:
    A, B = factors(r, r1, r2, m, n)
    x = torch.randn(batch, 3, r2 * n, dtype=torch.float64)
    cotangent = torch.randn(batch, 3, m * r1, dtype=torch.float64)
    grads = []
    for product in (lambda x, A, B: kron_linear(x, A, B, scale), lambda x, A, B: x @ (scale * dense(A, B)).T):
        inputs = [t.clone().requires_grad_() for t in (x, A, B)]
        y = product(*inputs)
        grads.append((y, *torch.autograd.grad(y, inputs, cotangent)))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@given(r=sizes, r1=sizes, r2=sizes, m=sizes, n=sizes)
@settings(max_examples=30, deadline=None)
def test_delta_is_the_sum_of_kronecker_products(r: int, r1: int, r2: int, m: int, n: int) -> None:
    A, B = factors(r, r1, r2, m, n)
    torch.testing.assert_close(kron_delta(A, B, 0.5), 0.5 * dense(A, B))


def test_second_derivatives_exist() -> None:
    A, B = factors(2, 2, 2, 2, 3)
    x = torch.randn(2, 6, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda x, A, B: kron_linear(x, A, B, 0.7), [t.requires_grad_() for t in (x, A, B)]
    )


def test_a_non_contiguous_input_is_accepted() -> None:
    A, B = factors(2, 2, 3, 4, 5)
    x = torch.randn(15, 7, dtype=torch.float64).T
    torch.testing.assert_close(kron_linear(x, A, B), x @ dense(A, B).T)


@pytest.mark.parametrize(
    ("shape_a", "shape_b", "features", "message"),
    [
        ((2, 2, 3), (3, 4, 2), 6, "with the same r"),
        ((2, 6), (2, 4, 2), 6, "must be A of shape"),
        ((2, 2, 3), (2, 4, 2), 7, "d_in = r2 \\* d_in/r2 = 6"),
    ],
)
def test_factors_of_mismatched_shapes_are_rejected(
    shape_a: tuple[int, ...], shape_b: tuple[int, ...], features: int, message: str
) -> None:
    with pytest.raises(CdkaError, match=message):
        kron_linear(torch.zeros(1, features), torch.zeros(shape_a), torch.zeros(shape_b))
