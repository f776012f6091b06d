"""Starting values of the factors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def kaiming_(A: Tensor, B: Tensor) -> None:
    """Kaiming-uniform A (a = sqrt 5) and zero B, so dW = 0 (arXiv 2602.01267, section 4).

    Every ``A_i`` of shape ``(r1, d_in/r2)`` is drawn with its own fan-in ``d_in/r2``:
    uniform on ``[-1/sqrt(fan_in), 1/sqrt(fan_in)]``, as a stacked matrix ``(r*r1, d_in/r2)`` would be.
    """
    # The stacked view makes fan-in the last axis; on a 3-d tensor torch would count r1 into it.
    nn.init.kaiming_uniform_(A.view(-1, A.shape[-1]), a=math.sqrt(5))
    nn.init.zeros_(B)


@torch.no_grad()
def initialize_(A: Tensor, B: Tensor, init_weights: bool) -> None:
    """Fill the factors in place: ``True`` is :func:`kaiming_`, ``False`` draws B too (a non-identity adapter)."""
    if A.device.type == "meta":
        return
    kaiming_(A, B)
    if not init_weights:
        nn.init.normal_(B, std=0.02)
