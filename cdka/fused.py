"""The frozen linear layer and its Kronecker adapter in one autograd function, with few passes over the activations.

At adapter ranks the arithmetic is cheap; the time goes into reading and writing tensors of the size of the
activations. So matrix products accumulate the adapter's output and its part of ``dx`` in place, and only x and ``T``
(``(N, r*r1*r2)``) are kept for the backward pass.

With r1 > 1 the output's columns interleave (column ``u*r1 + q``), which no BLAS call can write. There are two ways
around this:

- expanded: widen B to ``B (x) I_r1``, of shape ``(r*r1*r2, d_out)``. Two plain products then read and write
  activations in their own layout, at r1 times the arithmetic of B's products;
- shuffled: keep B and interleave with torch's channel shuffle, a transposition per token.

Activations read and written in addition to the frozen layer's own, in units of ``N*d`` for ``N`` tokens, a layer of
width d and ``K = r*r1*r2`` (``benchmarks/traffic.py``; a test compares it with what the operations move):

- expanded, forward ``3 + 2K/d``: x is read, y read and written; T written and read. Backward ``5 + 4K/d``: dy is read
  for dT and for dB, x for dA, dx is read and written; dT is written and read twice, T read once.
- shuffled, forward ``5 + 4K/d``: the adapter's y is written, shuffled (read, written) and read by the frozen layer's
  product (with a bias, it is added: ``7 + 4K/d``). Backward ``7 + 6K/d``: dy is shuffled, too.

Expansion is faster where B's products are bound by memory; see :data:`LARGEST_EXPANSION`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.functional import linear

# The largest inner size ``r*r1*r2`` that is expanded, by device. An H100 does 590 operations in the time that it takes
# to move one 16-bit number (990 TFLOP/s, 3.35 TB/s). A product that reads and writes y and adds K terms to it is
# therefore bound by memory up to a K of about 590; 256 allows for cuBLAS not reaching peak speed. On one core of an x86
# server both ways take the same time at 64 (benchmarks/adapter.py --crossover).
LARGEST_EXPANSION = {"cuda": 256, "cpu": 64}
# The expanded B is kept for the backward pass if x has at least this many times its rows.
ROWS_PER_KEPT = 8
_PLAIN = frozenset({Tensor, torch.nn.Parameter, FakeTensor})


def can_fuse(*tensors: Tensor | None) -> bool:
    """Whether the fused function may run; otherwise plain autograd operations do.

    It does not run under functorch transforms, forward-mode differentiation or ``torch.compile`` (which fuses plain
    operations itself), nor on tensor subclasses or meta tensors. The tensors' precisions may differ: the products run
    in x's precision, or in autocast's.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN or t.is_meta or not t.is_floating_point()):
            return False
    return True


def expands(device: str, r: int, r1: int, r2: int) -> bool:
    """Whether B is expanded on this kind of device; with r1 = 1 there is nothing to interleave."""
    return r1 == 1 or r * r1 * r2 <= LARGEST_EXPANSION.get(device, LARGEST_EXPANSION["cuda"])


def plain(
    x: Tensor, A: Tensor, B: Tensor, scale: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """``x W^T + b + x dW^T`` by differentiable operations alone; shapes as in :func:`fused`."""
    r, r1, n = A.shape
    m, r2 = B.shape[1], B.shape[2]
    # (N, r2, n) @ (n, r*r1): every block of x against every row of every A_i.
    T = x.reshape(-1, r2, n) @ A.reshape(r * r1, n).transpose(0, 1)
    # Contract over (v, i), the columns of all B_i; q, the row of A_i, moves beside the batch.
    T = T.view(-1, r2, r, r1).permute(0, 3, 1, 2).reshape(-1, r1, r2 * r)
    up = B.permute(2, 0, 1).reshape(r2 * r, m)
    if scale != 1.0:
        up = up * scale
    # (N, q, u); the output's column is u*r1 + q.
    y = (T @ up).transpose(1, 2).reshape(*x.shape[:-1], m * r1)
    return y if weight is None else linear(x, weight, bias) + y


def fused(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scale: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    features: Tensor | None = None,
    base: Tensor | None = None,
) -> Tensor:
    """``y = x W^T + b + scale * sum_i f (B_i (x) A_i)^T`` in one autograd function, with ``f = features`` or x.

    Computes in autocast's precision if autocast is on, else in x's: the factors and the weight are cast, because they
    are smaller than the activations. Each gradient has the precision of its tensor.

    Falls back to plain autograd for double backward: a backward pass that is itself recorded (``create_graph``)
    differentiates the plain formula. For transforms and compilation, see :func:`can_fuse`.

    Args:
        x: ``(..., d_in)``.
        A: ``(r, r1, d_in/r2)``.
        B: ``(r, d_out/r1, r2)``.
        scale: lambda.
        weight: the frozen ``(d_out, d_in)``; ``None`` gives the adapter's part alone.
        bias: the frozen ``(d_out,)``.
        features: the adapter's input if it is not x, such as x after dropout; of x's shape.
        base: the frozen layer's output ``(..., d_out)``, if it was computed separately (with ``weight=None``); the
            adapter's part is added to it.

    Returns:
        ``(..., d_out)``.
    """
    # Cast here, not inside the function, so that double backward reaches the original x.
    dtype = compute_dtype(x)
    x, features = x.to(dtype), None if features is None else features.to(dtype)
    y: Tensor = _KronLinear.apply(x, A, B, scale, weight, bias, features, base)  # type: ignore[no-untyped-call]
    return y


def compute_dtype(x: Tensor) -> torch.dtype:
    """The precision of the products: autocast's if it is on (except for float64), else x's."""
    kind = x.device.type
    if x.dtype != torch.float64 and kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


class _KronLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scale: float,
        weight: Tensor | None,
        bias: Tensor | None,
        features: Tensor | None,
        base: Tensor | None,
    ) -> Tensor:
        r, r1, n = A.shape
        m, r2 = B.shape[1], B.shape[2]
        dtype = x.dtype
        seen = x if features is None else features
        T = torch.mm(seen.reshape(-1, n), cast(A, dtype).reshape(-1, n).t()).view(-1, r2 * r * r1)
        up = None
        if expands(x.device.type, r, r1, r2):
            up = expanded(cast(B, dtype), r1)
            y = frozen_output(x, weight, bias)
            if y is not None:
                y.addmm_(T, up, alpha=scale)
            elif base is not None:
                y = torch.addmm(base.reshape(-1, m * r1), T, up, alpha=scale)
            else:
                y = torch.mm(T, up * scale)
        else:
            T = _shuffle(T, r2 * r).reshape(-1, r2 * r)
            y = _shuffle(torch.mm(T, _flat(cast(B, dtype)) * scale).view(-1, r1 * m), r1)
            if base is not None:
                y = y.add_(base.reshape(-1, m * r1))
            elif weight is not None and bias is None:
                y.addmm_(x.reshape(-1, x.shape[-1]), cast(weight, dtype).t())
            elif (frozen := frozen_output(x, weight, bias)) is not None:
                y = frozen.add_(y)
        # Save the weight uncast and cast it again in backward: the cast copies of all layers would be held at once.
        ctx.save_for_backward(seen, A, B, T, weight, kept_for_backward(up, r1, len(T)))
        ctx.scale, ctx.has_base, ctx.has_features = scale, base is not None, features is not None
        # Autograd forbids in-place changes (``hidden += y``) to a view made in here; ``.data`` is not a view.
        return y.view(*x.shape[:-1], m * r1).data

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        seen, A, B, T, weight, up = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _recorded_gradients(ctx, seen, A, B, weight, dy)
        # The forward pass chose the products' precision; autocast must not change it here.
        with without_autocast(dy.device.type):
            return _gradients(ctx, seen, A, B, T, weight, up, dy)


def _gradients(
    ctx: Any,
    seen: Tensor,
    A: Tensor,
    B: Tensor,
    T: Tensor,
    weight: Tensor | None,
    up: Tensor | None,
    dy: Tensor,
) -> tuple[Tensor | None, ...]:
    """The gradients of all inputs; they cannot be differentiated again."""
    r, r1, n = A.shape
    need_x, need_A, need_B = ctx.needs_input_grad[:3]
    need_seen = ctx.needs_input_grad[6] if ctx.has_features else need_x
    dtype = seen.dtype
    rows = cast(dy, dtype).reshape(-1, dy.shape[-1]).contiguous()  # the gradient of a sum is an expanded tensor
    dT, dB = up_gradients(rows, T, cast(B, dtype), r1, up, (need_seen or need_A, need_B))
    dx = torch.mm(rows, cast(weight, dtype)) if need_x and weight is not None else None
    dA = dseen = None
    if need_A:
        dA = torch.mm(dT.t(), seen.reshape(-1, n)).mul_(ctx.scale).view(r, r1, n)
    if need_B:
        dB.mul_(ctx.scale)
    if need_seen:
        flat_A = cast(A, dtype).reshape(-1, n)
        if dx is None or ctx.has_features:
            dseen = torch.mm(dT, flat_A * ctx.scale).view(seen.shape)
        else:
            dx.view(-1, n).addmm_(dT, flat_A, alpha=ctx.scale)
    dx = None if dx is None else dx.view(seen.shape)
    dbase = dy if ctx.has_base else None
    if ctx.has_features:
        return dx, dA, dB, None, None, None, dseen, dbase
    return (dseen if dx is None else dx), dA, dB, None, None, None, None, dbase


def up_gradients(
    dy: Tensor, T: Tensor, B: Tensor, r1: int, up: Tensor | None, needed: tuple[bool, bool]
) -> tuple[Any, Any]:
    """``dT`` as ``(N*r2, r*r1)`` in the order of A's rows, and ``dB``, both before scaling.

    ``up`` is the expanded B of the forward pass, if it was kept.
    """
    r, m, r2 = B.shape
    need_T, need_B = needed
    dT = dB = None
    if expands(dy.device.type, r, r1, r2):
        if need_T:
            dT = torch.mm(dy, (expanded(B, r1) if up is None else up).t()).view(-1, r * r1)
        if need_B:
            wide = torch.mm(T.t(), dy)
            if r1 > 1:
                wide = wide.view(r2 * r, r1, m, r1).diagonal(dim1=1, dim2=3).sum(-1)
            dB = wide.view(r2, r, m).permute(1, 2, 0)
        return dT, dB
    shuffled = _shuffle(dy, m).reshape(-1, m)
    if need_T:
        dT = _shuffle(torch.mm(shuffled, _flat(B).t()).view(-1, r1 * r2 * r), r1).reshape(-1, r * r1)
    if need_B:
        dB = torch.mm(T.t(), shuffled).view(r2, r, m).permute(1, 2, 0)
    return dT, dB


def kept_for_backward(up: Tensor | None, r1: int, rows: int) -> Tensor | None:
    """The expanded B if it is small compared with x, so that it is built once per step; else ``None``."""
    return up if up is not None and r1 > 1 and rows >= ROWS_PER_KEPT * up.shape[0] else None


def without_autocast(kind: str) -> AbstractContextManager[object]:
    """A context in which autocast is off on this kind of device; costs nothing where it is off already."""
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t.to(dtype)``, but skips the call if it would do nothing, because it runs in every layer."""
    return t if t.dtype is dtype else t.to(dtype)


def frozen_output(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """The frozen layer's output as ``(N, d_out)``, in x's precision; ``None`` without a weight."""
    if weight is None:
        return None
    return linear(x.reshape(-1, x.shape[-1]), cast(weight, x.dtype), None if bias is None else cast(bias, x.dtype))


def _flat(B: Tensor) -> Tensor:
    """``(r2*r, m)``: row ``(v, i)`` is column v of B_i."""
    r, m, r2 = B.shape
    return B.permute(2, 0, 1).reshape(r2 * r, m)


def expanded(B: Tensor, r1: int) -> Tensor:
    """``B (x) I_r1`` as ``(r2*r*r1, m*r1)``, rows in the order of T's columns ``(v, i, q)``."""
    if r1 == 1:
        return _flat(B)
    r, m, r2 = B.shape
    repeated = B.permute(2, 0, 1).unsqueeze(-1).expand(r2, r, m, r1)
    return torch.diag_embed(repeated, dim1=2, dim2=4).view(r2 * r * r1, m * r1)


def _shuffle(rows: Tensor, groups: int) -> Tensor:
    """Per row, the transposition ``(groups, k) -> (k, groups)``.

    If the rows are viewed as pixels of a channels-last image, this is torch's channel shuffle, which transposes with
    vector instructions; a strided copy takes twice as long.
    """
    if groups in (1, rows.shape[1]):
        return rows
    image = rows[None, :, None, :].permute(0, 3, 1, 2)
    shuffled: Tensor = torch.native_channel_shuffle(image, groups)
    return shuffled.permute(0, 2, 3, 1).reshape(rows.shape)


def _recorded_gradients(
    ctx: Any, seen: Tensor, A: Tensor, B: Tensor, weight: Tensor | None, dy: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients as differentiable operations, for double backward."""
    dtype = seen.dtype
    need_x, need_A, need_B = ctx.needs_input_grad[:3]
    need_features = ctx.needs_input_grad[6] if ctx.has_features else need_x
    # Aliases: a factor that depends on x must not be counted twice.
    seen, A, B = seen.view_as(seen), A.view_as(A), B.view_as(B)
    inputs = [t for t, need in ((seen, need_features), (A, need_A), (B, need_B)) if need]
    part = plain(seen, A.to(dtype), B.to(dtype), ctx.scale)
    found = iter(torch.autograd.grad(part, inputs, dy.to(dtype), create_graph=True) if inputs else ())
    dseen, dA, dB = (next(found) if need else None for need in (need_features, need_A, need_B))
    dbase = dy if ctx.has_base else None
    dx = None if not need_x or weight is None else dy.to(dtype) @ weight.to(dtype)
    if ctx.has_features:
        return dx, dA, dB, None, None, None, dseen, dbase
    if dseen is not None:
        dx = dseen if dx is None else dx + dseen
    return dx, dA, dB, None, None, None, None, dbase
