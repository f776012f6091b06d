"""Products with sums of Kronecker products, without ever building the product.

Index convention (row-major, as in ``torch.kron``):
``dW[u*r1 + q, v*(d_in/r2) + t] = scale * sum_i B_i[u, v] * A_i[q, t]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import CdkaError
from .fused import can_fuse, compute_dtype, fused, plain


def _require_factors(x_features: int | None, A: Tensor, B: Tensor) -> None:
    if A.dim() != 3 or B.dim() != 3 or A.shape[0] != B.shape[0]:
        raise CdkaError(
            "factors must be A of shape (r, r1, d_in/r2) and B of shape (r, d_out/r1, r2) with the same r; "
            f"got {tuple(A.shape)} and {tuple(B.shape)}"
        )
    d_in = B.shape[2] * A.shape[2]
    if x_features is not None and x_features != d_in:
        raise CdkaError(f"x has {x_features} features, but the factors need d_in = r2 * d_in/r2 = {d_in}")


def kron_linear(x: Tensor, A: Tensor, B: Tensor, scale: float = 1.0) -> Tensor:
    """``y = x dW^T`` with ``dW = scale * sum_i B_i (x) A_i``, in ``2 N r (r1*d_in + r2*d_out)`` operations.

    A custom autograd function keeps x and ``T`` (``(N, r*r1*r2)``) for the backward pass. Double backward,
    functorch transforms and ``torch.compile`` use plain autograd operations instead.

    Args:
        x: ``(..., d_in)``.
        A: ``(r, r1, d_in/r2)``.
        B: ``(r, d_out/r1, r2)``.
        scale: lambda, folded into B.

    Returns:
        ``(..., d_out)``.

    Raises:
        CdkaError: the shapes of the factors do not match, or ``x`` does not match them.
    """
    _require_factors(x.shape[-1], A, B)
    if can_fuse(x, A, B):
        return fused(x, A, B, scale)
    return plain(*autocast_inputs(x, A, B), scale)


def autocast_inputs(x: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cast x, A and B to the precision that the product runs in."""
    dtype = compute_dtype(x)
    return x.to(dtype), A.to(dtype), B.to(dtype)


def kron_delta(A: Tensor, B: Tensor, scale: float = 1.0) -> Tensor:
    """``dW = scale * sum_i B_i (x) A_i`` of shape ``(d_out, d_in)``, for merging; never used in a forward pass."""
    _require_factors(None, A, B)
    _, r1, n = A.shape
    m, r2 = B.shape[1], B.shape[2]
    delta = torch.einsum("iuv,iqt->uqvt", B, A).reshape(m * r1, r2 * n)
    return delta * scale
