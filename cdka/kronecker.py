"""Products with sums of Kronecker products, without ever building the product.

Index convention (row-major), the one of ``torch.kron``:
``dW[u*r1 + q, v*(d_in/r2) + t] = scale * sum_i B_i[u, v] * A_i[q, t]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import CdkaError


def _require_factors(x_features: int | None, A: Tensor, B: Tensor) -> None:
    if A.dim() != 3 or B.dim() != 3 or A.shape[0] != B.shape[0]:
        raise CdkaError(
            "factors must be A of shape (r, r1, d_in/r2) and B of shape (r, d_out/r1, r2) with one r; "
            f"got {tuple(A.shape)} and {tuple(B.shape)}"
        )
    d_in = B.shape[2] * A.shape[2]
    if x_features is not None and x_features != d_in:
        raise CdkaError(f"x has {x_features} features, the factors take d_in = r2 * d_in/r2 = {d_in}")


def kron_linear(x: Tensor, A: Tensor, B: Tensor, scale: float = 1.0) -> Tensor:
    """``y = x dW^T`` with ``dW = scale * sum_i B_i (x) A_i``, in ``2 N r (r1*d_in + r2*d_out)`` operations.

    Args:
        x: ``(..., d_in)``.
        A: ``(r, r1, d_in/r2)``.
        B: ``(r, d_out/r1, r2)``.
        scale: lambda, folded into the smaller of the two factors.

    Returns:
        ``(..., d_out)``.

    Raises:
        CdkaError: the factors do not belong together, or ``x`` does not fit them.
    """
    _require_factors(x.shape[-1], A, B)
    r, r1, n = A.shape
    m, r2 = B.shape[1], B.shape[2]
    blocks = x.reshape(-1, r2, n)
    # (N, r2, n) @ (n, r*r1): every block of x against every row of every A_i.
    T = blocks @ A.reshape(r * r1, n).transpose(0, 1)
    # Row q of A_i meets column v of B_i: bring (i, v) together as the contracted axis, q beside the batch.
    T = T.view(-1, r2, r, r1).permute(0, 3, 2, 1).reshape(-1, r1, r * r2)
    up = B.permute(1, 0, 2).reshape(m, r * r2)
    if scale != 1.0:
        up = up * scale
    y = T @ up.transpose(0, 1)
    # y is (N, q, u); output row is u*r1 + q.
    return y.transpose(1, 2).reshape(*x.shape[:-1], m * r1)


def kron_delta(A: Tensor, B: Tensor, scale: float = 1.0) -> Tensor:
    """``dW = scale * sum_i B_i (x) A_i`` of shape ``(d_out, d_in)``, for merging; never used in a forward pass."""
    _require_factors(None, A, B)
    _, r1, n = A.shape
    m, r2 = B.shape[1], B.shape[2]
    delta = torch.einsum("iuv,iqt->uqvt", B, A).reshape(m * r1, r2 * n)
    return delta * scale
