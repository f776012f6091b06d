"""The rearrangement that makes fitting Kronecker products a low-rank problem (Van Loan and Pitsianis 1993).

``R(M)`` has shape ``(d_out*r2/r1, r1*d_in/r2)``. Its row ``(u, v)`` holds the block of M that is ``B[u, v] * A`` if
``M = B (x) A``. So ``R(B (x) A) = vec(B) vec(A)^T``: a sum of r Kronecker products becomes a matrix of rank r at most,
and the r leading singular vectors give the nearest one (Eckart, Young 1936).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .divisors import require_divides
from .errors import CdkaError


def rearrange(matrix: Tensor, r1: int, r2: int) -> Tensor:
    """``R(M)``: ``(d_out, d_in) -> (d_out*r2/r1, r1*d_in/r2)``.

    Raises:
        IndivisibleError: r1 does not divide d_out or r2 does not divide d_in.
    """
    d_out, d_in = matrix.shape
    require_divides("r1", r1, "d_out", d_out, "the matrix")
    require_divides("r2", r2, "d_in", d_in, "the matrix")
    m, n = d_out // r1, d_in // r2
    return matrix.reshape(m, r1, r2, n).permute(0, 2, 1, 3).reshape(m * r2, r1 * n)


def nearest_factors(matrix: Tensor, r1: int, r2: int, r: int) -> tuple[Tensor, Tensor]:
    """Factors A ``(r, r1, d_in/r2)`` and B ``(r, d_out/r1, r2)`` whose ``sum_i B_i (x) A_i`` is nearest to ``matrix``.

    Nearest in the Frobenius norm; each singular value is split evenly between its two factors.

    Raises:
        CdkaError: r exceeds the number of singular values that the rearranged matrix has.
    """
    rearranged = rearrange(matrix.detach().float(), r1, r2)
    if r > min(rearranged.shape):
        raise CdkaError(
            f"r={r} is too large for a {tuple(matrix.shape)} matrix at r1={r1}, r2={r2}; "
            f"r is at most {min(rearranged.shape)}"
        )
    U, S, Vh = torch.linalg.svd(rearranged, full_matrices=False)
    root = S[:r].sqrt()
    return _unflatten(U[:, :r] * root, Vh[:r] * root[:, None], matrix.shape[0] // r1, r1, r2)


def truncate_factors(A: Tensor, B: Tensor, r: int) -> tuple[Tensor, Tensor, float]:
    """The r components nearest to ``sum_i B_i (x) A_i``, and the relative error ``|| rest ||_F / || all ||_F``.

    Works on the factors alone: with ``vec(B) = Q_B R_B`` and ``vec(A) = Q_A R_A`` the singular values are those of the
    small ``R_B R_A^T``.
    """
    count, r1, _ = A.shape
    m, r2 = B.shape[1], B.shape[2]
    QB, RB = torch.linalg.qr(B.detach().double().reshape(count, m * r2).T)
    QA, RA = torch.linalg.qr(A.detach().double().reshape(count, -1).T)
    U, S, Vh = torch.linalg.svd(RB @ RA.T, full_matrices=False)
    kept = min(r, len(S))
    root = S[:kept].sqrt()
    left, right = (QB @ U[:, :kept]) * root, ((QA @ Vh[:kept].T) * root).T
    if kept < r:  # fewer singular values than r: pad with zero components
        left = torch.cat([left, left.new_zeros(left.shape[0], r - kept)], 1)
        right = torch.cat([right, right.new_zeros(r - kept, right.shape[1])], 0)
    energy = S.square()
    error = float((energy[kept:].sum() / energy.sum().clamp_min(torch.finfo(torch.float64).tiny)).sqrt())
    new_A, new_B = _unflatten(left, right, m, r1, r2)
    return new_A.to(A.dtype), new_B.to(B.dtype), error


def _unflatten(left: Tensor, right: Tensor, m: int, r1: int, r2: int) -> tuple[Tensor, Tensor]:
    r = right.shape[0]
    return right.reshape(r, r1, -1).contiguous(), left.T.reshape(r, m, r2).contiguous()
