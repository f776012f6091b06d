"""The frozen linear layer and its Kronecker adapter in one autograd function, with few passes over the activations.

At adapter ranks the arithmetic is small and what costs is reading and writing tensors of the size of the
activations. So the scale is folded into B, the adapter's output is accumulated inside a matrix product, ``dX`` is
accumulated into the base layer's, and only x and ``T`` (``(N, r*r1*r2)``) are kept for the backward pass.

With r1 > 1 the output's columns interleave (column ``u*r1 + q``), which no BLAS call can write. Two ways around:

- expanded: widen B to ``B (x) I_r1``, so that the products read and write activations as they lie, for r1 times the
  arithmetic of B's products;
- shuffled: keep B and interleave with torch's channel shuffle, a vectorised transposition per token, for one more
  pass over the output and one over its gradient.

On CUDA, where Triton is installed, kernels that read and write the stride themselves replace the second.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import linear

from . import triton_kernels

# Expansion adds 6 N d_out r r2 (r1 - 1) operations a step, shuffling adds two passes over N d_out numbers. On one
# core of a current x86 server both cost the same near r r2 (r1 - 1) = 24 (benchmarks/adapter.py --crossover).
EXPANSION_LIMIT = 24


def can_fuse(*tensors: Tensor | None) -> bool:
    """Whether the fused function may run; where it is ``False``, plain autograd operations do.

    It may not under functorch transforms, forward-mode differentiation and ``torch.compile`` (which fuses plain
    operations by itself), nor on tensor subclasses, meta tensors, mixed precisions, or a base that is trained.
    """
    given = [t for t in tensors if t is not None]
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and all(type(t) in (Tensor, torch.nn.Parameter) for t in given)
        and all(t.dtype == given[0].dtype and t.is_floating_point() for t in given)
        and not any(t.is_meta for t in given)
    )


def plain(
    x: Tensor, A: Tensor, B: Tensor, scale: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """``x W^T + b + x dW^T`` by differentiable operations alone; shapes as in :func:`fused`."""
    r, r1, n = A.shape
    m, r2 = B.shape[1], B.shape[2]
    # (N, r2, n) @ (n, r*r1): every block of x against every row of every A_i.
    T = x.reshape(-1, r2, n) @ A.reshape(r * r1, n).transpose(0, 1)
    # Row q of A_i meets column v of B_i: bring (v, i) together as the contracted axis, q beside the batch.
    T = T.view(-1, r2, r, r1).permute(0, 3, 1, 2).reshape(-1, r1, r2 * r)
    up = B.permute(2, 0, 1).reshape(r2 * r, m)
    if scale != 1.0:
        up = up * scale
    # (N, q, u); the output's column is u*r1 + q.
    y = (T @ up).transpose(1, 2).reshape(*x.shape[:-1], m * r1)
    return y if weight is None else linear(x, weight, bias) + y


def fused(
    x: Tensor, A: Tensor, B: Tensor, scale: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """``y = x W^T + b + scale * sum_i x (B_i (x) A_i)^T`` in one autograd function.

    Falls back to plain autograd for double backward: a backward pass that is itself recorded (``create_graph``)
    differentiates the plain formula. For transforms and compilation, see :func:`can_fuse`.

    Args:
        x: ``(..., d_in)``.
        A: ``(r, r1, d_in/r2)``.
        B: ``(r, d_out/r1, r2)``.
        scale: lambda.
        weight: the frozen ``(d_out, d_in)``; ``None`` gives the adapter's part alone.
        bias: the frozen ``(d_out,)``.

    Returns:
        ``(..., d_out)``.
    """
    y: Tensor = _KronLinear.apply(x, A, B, scale, weight, bias)  # type: ignore[no-untyped-call]
    return y


class _KronLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, scale: float, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        r, r1, n = A.shape
        m, r2 = B.shape[1], B.shape[2]
        rows = x.reshape(-1, r2 * n)
        T = torch.mm(rows.reshape(-1, n), A.reshape(r * r1, n).t()).view(-1, r2 * r * r1)
        if _expands(r, r1, r2):
            y = _add(torch.mm, T, _expanded(B, r1, scale), rows, weight, bias)
        else:
            T = _shuffle(T, r2 * r).view(-1, r2 * r)

            if triton_kernels.usable(x, r, r1, r2):
                y = x.new_zeros(len(rows), m * r1) if weight is None else linear(rows, weight, bias)
                triton_kernels.add_up(y, T.contiguous(), _flat(B, scale), r1)
            else:

                def up(T: Tensor, B_flat: Tensor) -> Tensor:
                    return _shuffle(torch.mm(T, B_flat).view(-1, r1 * m), r1)

                y = _add(up, T, _flat(B, scale), rows, weight, bias)
        ctx.save_for_backward(x, A, B, T, weight)
        ctx.scale, ctx.bias = scale, bias
        # Autograd forbids changing a view that was made in here in place, as ``hidden += y`` does; data is no view.
        return y.view(*x.shape[:-1], m * r1).data

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, A, B, T, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_recorded_gradients(x, A, B, ctx.scale, weight, dy, ctx.needs_input_grad), None, None, None
        r, r1, n = A.shape
        m, r2 = B.shape[1], B.shape[2]
        need_x, need_A, need_B = ctx.needs_input_grad[:3]
        dy = dy.reshape(-1, m * r1).contiguous()  # a sum's gradient arrives expanded
        dx = dA = dB = dT = None
        if _expands(r, r1, r2):
            if need_x or need_A:
                dT = dy @ _expanded(B, r1, ctx.scale).t()
            if need_B:
                diagonal = (T.t() @ dy).view(r2, r, r1, m, r1).diagonal(dim1=2, dim2=4)
                dB = (diagonal.sum(-1) if r1 > 1 else diagonal[..., 0]).permute(1, 2, 0) * ctx.scale
        elif triton_kernels.usable(x, r, r1, r2):
            dT, dup = triton_kernels.down_gradients(dy, T.contiguous(), _flat(B, ctx.scale), r1)
            dT = _shuffle(dT.view(-1, r1 * r2 * r), r1)
            dB = (dup.view(r2, r, m).permute(1, 2, 0) * ctx.scale).to(B.dtype)
        else:
            shuffled = _shuffle(dy, m).view(-1, m)
            if need_x or need_A:
                dT = _shuffle((shuffled @ _flat(B, ctx.scale).t()).view(-1, r1 * r2 * r), r1)
            if need_B:
                dB = (T.t() @ shuffled).view(r2, r, m).permute(1, 2, 0) * ctx.scale
        if dT is not None:
            dT = dT.view(-1, r * r1)
            if need_A:
                dA = (dT.t() @ x.reshape(-1, n)).view(r, r1, n)
            if need_x:
                if weight is None:
                    dx = torch.mm(dT, A.reshape(r * r1, n))
                else:
                    dx = torch.mm(dy, weight)
                    dx.view(-1, n).addmm_(dT, A.reshape(r * r1, n))
                dx = dx.view(x.shape)
        return dx, dA, dB, None, None, None


def _expands(r: int, r1: int, r2: int) -> bool:
    return r * r2 * (r1 - 1) <= EXPANSION_LIMIT


def _flat(B: Tensor, scale: float) -> Tensor:
    """``(r2*r, m)``: row ``(v, i)`` is column v of B_i, scaled."""
    r, m, r2 = B.shape
    return (B.permute(2, 0, 1) * scale).reshape(r2 * r, m).contiguous()


def _expanded(B: Tensor, r1: int, scale: float) -> Tensor:
    """``scale * (B (x) I_r1)`` as ``(r2*r*r1, m*r1)``, rows in the order of T's columns ``(v, i, q)``."""
    r, m, r2 = B.shape
    if r1 == 1:
        return _flat(B, scale)
    wide = B.new_zeros(r2, r, r1, m, r1)
    wide.diagonal(dim1=2, dim2=4).copy_((B.permute(2, 0, 1) * scale).unsqueeze(-1).expand(r2, r, m, r1))
    return wide.view(r2 * r * r1, m * r1)


def _add(up: Any, T: Tensor, factor: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The adapter's output and the base layer's, one accumulated into the other by a matrix product."""
    y: Tensor
    if weight is None:
        y = up(T, factor)
    elif up is torch.mm:
        y = linear(x, weight, bias).addmm_(T, factor)
    elif bias is None:
        y = up(T, factor).addmm_(x, weight.t())
    else:
        y = linear(x, weight, bias).add_(up(T, factor))
    return y


def _shuffle(rows: Tensor, groups: int) -> Tensor:
    """Per row, the transposition ``(groups, k) -> (k, groups)``.

    Rows seen as pixels of a channels-last image make this torch's channel shuffle, which transposes with vector
    instructions; a strided copy takes twice the time.
    """
    if groups in (1, rows.shape[1]):
        return rows
    image = rows[None, :, None, :].permute(0, 3, 1, 2)
    shuffled: Tensor = torch.native_channel_shuffle(image, groups)
    return shuffled.permute(0, 2, 3, 1).reshape(rows.shape)


def _recorded_gradients(
    x: Tensor, A: Tensor, B: Tensor, scale: float, weight: Tensor | None, dy: Tensor, needed: tuple[bool, ...]
) -> list[Tensor | None]:
    inputs = [t for t, need in zip((x, A, B), needed, strict=False) if need]
    y = plain(x, A, B, scale, weight)
    found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
    return [next(found) if need else None for need in needed[:3]]
