"""Fused Triton kernels for the interleaved output side of a Kronecker adapter on CUDA.

With r1 > 1 column ``u*r1 + q`` of the output belongs to ``(u, q)``. A kernel can read and write that stride itself, so
no shuffled copy of the activations is ever made:

- :func:`add_up`: ``y[n, u*r1 + q] += sum_k T[n, q, k] * up[k, u]``, one pass over y;
- :func:`down_gradients`: ``dT[n, q, k] = sum_u dy[n, u*r1 + q] * up[k, u]`` and
  ``dup[k, u] = sum_{n,q} T[n, q, k] * dy[n, u*r1 + q]``, both from one pass over dy.

They run in Triton's interpreter too (``TRITON_INTERPRET=1``), which is how they are tested without a GPU.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

AVAILABLE = importlib.util.find_spec("triton") is not None
BLOCK_ROWS = 64
BLOCK_COLUMNS = 128
LARGEST_K = 256  # r*r2 beyond this leaves no registers for the tiles

if AVAILABLE:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def _add_up(
        y_ptr: Any, t_ptr: Any, up_ptr: Any, rows: Any, m: Any,
        R1: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr, WIDE: tl.constexpr,
    ) -> None:  # fmt: skip
        n = tl.program_id(0) * BN + tl.arange(0, BN)
        u = tl.program_id(1) * BU + tl.arange(0, BU)
        q = tl.program_id(2)
        k = tl.arange(0, KP)
        t_mask = (n[:, None] < rows) & (k[None, :] < K)
        up_mask = (k[:, None] < K) & (u[None, :] < m)
        t = tl.load(t_ptr + (n[:, None] * R1 + q) * K + k[None, :], mask=t_mask, other=0.0)
        up = tl.load(up_ptr + k[:, None] * m + u[None, :], mask=up_mask, other=0.0)
        if WIDE:
            t = t.to(tl.float32)
            up = up.to(tl.float32)
        place = y_ptr + n[:, None] * (m * R1) + u[None, :] * R1 + q
        y_mask = (n[:, None] < rows) & (u[None, :] < m)
        y = tl.load(place, mask=y_mask, other=0.0)
        total = tl.dot(t, up, input_precision="ieee") + y.to(tl.float32)
        tl.store(place, total.to(y.dtype), mask=y_mask)

    @triton.jit  # type: ignore[untyped-decorator]
    def _down_gradients(
        dy_ptr: Any, t_ptr: Any, up_ptr: Any, dt_ptr: Any, dup_ptr: Any, rows: Any, m: Any,
        R1: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr, WIDE: tl.constexpr,
    ) -> None:  # fmt: skip
        n = tl.program_id(0) * BN + tl.arange(0, BN)
        q = tl.program_id(1)
        k = tl.arange(0, KP)
        t_mask = (n[:, None] < rows) & (k[None, :] < K)
        t_place = (n[:, None] * R1 + q) * K + k[None, :]
        t = tl.load(t_ptr + t_place, mask=t_mask, other=0.0)
        if WIDE:
            t = t.to(tl.float32)
        dt = tl.zeros((BN, KP), dtype=tl.float32)
        for start in range(0, m, BU):
            u = start + tl.arange(0, BU)
            dy_mask = (n[:, None] < rows) & (u[None, :] < m)
            dy = tl.load(dy_ptr + n[:, None] * (m * R1) + u[None, :] * R1 + q, mask=dy_mask, other=0.0)
            up_mask = (k[:, None] < K) & (u[None, :] < m)
            up = tl.load(up_ptr + k[:, None] * m + u[None, :], mask=up_mask, other=0.0)
            if WIDE:
                dy = dy.to(tl.float32)
                up = up.to(tl.float32)
            dt += tl.dot(dy, tl.trans(up), input_precision="ieee")
            part = tl.dot(tl.trans(t), dy, input_precision="ieee")
            tl.atomic_add(dup_ptr + k[:, None] * m + u[None, :], part, mask=up_mask)
        tl.store(dt_ptr + t_place, dt.to(dt_ptr.dtype.element_ty), mask=t_mask)


def usable(x: Tensor, r: int, r1: int, r2: int) -> bool:
    """Whether the kernels serve this layer: on CUDA, in half or single precision, with interleaving to save."""
    return (
        AVAILABLE
        and x.is_cuda
        and r1 > 1
        and r * r2 <= LARGEST_K
        and x.dtype in (torch.float16, torch.bfloat16, torch.float32)
    )


def add_up(y: Tensor, T: Tensor, up: Tensor, r1: int) -> Tensor:
    """``y[n, u*r1 + q] += sum_k T[n*r1 + q, k] up[k, u]`` in place.

    Args:
        y: ``(N, m*r1)``, contiguous.
        T: ``(N*r1, K)``, contiguous.
        up: ``(K, m)``, contiguous.
        r1: component size on the output side.

    Returns:
        y.
    """
    rows, m, K = y.shape[0], up.shape[1], up.shape[0]
    grid = (triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(m, BLOCK_COLUMNS), r1)
    _add_up[grid](y, T, up, rows, m, **_constants(r1, K))
    return y


def down_gradients(dy: Tensor, T: Tensor, up: Tensor, r1: int) -> tuple[Tensor, Tensor]:
    """``dT`` of T's shape and dtype, and ``dup`` of up's shape in fp32 (sums over rows are accumulated in it).

    Args:
        dy: ``(N, m*r1)``, contiguous.
        T: ``(N*r1, K)``, contiguous.
        up: ``(K, m)``, contiguous.
        r1: component size on the output side.
    """
    rows, m, K = dy.shape[0], up.shape[1], up.shape[0]
    dT = torch.empty_like(T)
    dup = torch.zeros(up.shape, dtype=torch.float32, device=up.device)
    grid = (triton.cdiv(rows, BLOCK_ROWS), r1)
    _down_gradients[grid](dy, T, up, dT, dup, rows, m, **_constants(r1, K))
    return dT, dup


def _constants(r1: int, K: int) -> dict[str, Any]:
    # The interpreter's dot product is wrong for bf16 inputs.
    return {
        "R1": r1,
        "K": K,
        "KP": max(16, triton.next_power_of_2(K)),
        "BN": BLOCK_ROWS,
        "BU": BLOCK_COLUMNS,
        "WIDE": bool(triton.knobs.runtime.interpret),
    }
