"""Starting values of the factors, by name.

Those in :data:`INITIALIZERS` draw A and set B to zero, so dW = 0. Two initialisations need more than the shapes:
``weight`` (the base weight, see :meth:`cdka.CdkaLayer.start_from_weight`) and ``gradient``
(:func:`cdka.initialize_from_gradients`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .errors import CdkaError


def kaiming_(A: Tensor) -> None:
    """Kaiming-uniform (a = sqrt 5), as in the paper (arXiv 2602.01267, section 4).

    Every ``A_i`` of shape ``(r1, d_in/r2)`` is drawn with its own fan-in ``d_in/r2``:
    uniform on ``[-1/sqrt(fan_in), 1/sqrt(fan_in)]``, as a stacked matrix ``(r*r1, d_in/r2)`` would be.
    """
    # In the stacked view the last axis is the fan-in; for a 3-d tensor torch would multiply it by r1.
    nn.init.kaiming_uniform_(A.view(-1, A.shape[-1]), a=math.sqrt(5))


def gaussian_(A: Tensor) -> None:
    """Gaussian with variance ``1/fan_in = r2/d_in``: LoRA's random Gaussian A (Hu et al. 2021, section 4.1)."""
    nn.init.normal_(A, std=1 / math.sqrt(A.shape[-1]))


def orthogonal_(A: Tensor) -> None:
    """Components orthogonal to each other, ``<A_i, A_j>_F = 0``, each with Kaiming's expected norm ``sqrt(r1/3)``.

    Random orthogonal matrices after Saxe et al. 2014, applied to the vectorised components: the directions onto which
    the first update projects the gradient (:func:`cdka.predictors.alignment.expected_cosine`) then never overlap.

    Raises:
        CdkaError: there are more components than dimensions, ``r > r1*d_in/r2``.
    """
    r, r1, n = A.shape
    if r > r1 * n:
        raise CdkaError(f"r={r} components of shape ({r1}, {n}) cannot be orthogonal; r is at most {r1 * n}")
    flat = torch.empty(r, r1 * n, dtype=torch.float32, device=A.device)
    nn.init.orthogonal_(flat, gain=math.sqrt(r1 / 3))
    A.copy_(flat.view(r, r1, n))


INITIALIZERS: dict[str, Callable[[Tensor], None]] = {
    "kaiming": kaiming_,
    "gaussian": gaussian_,
    "orthogonal": orthogonal_,
    "gradient": kaiming_,  # until initialize_from_gradients sets them
}
NAMES = (*INITIALIZERS, "weight")


@torch.no_grad()
def initialize_(A: Tensor, B: Tensor, init_weights: bool | str) -> None:
    """Fill the factors in place: ``True`` is ``"kaiming"``, ``False`` draws B at random too (dW is not 0)."""
    if A.device.type == "meta":
        return
    INITIALIZERS[init_weights if isinstance(init_weights, str) else "kaiming"](A)
    if init_weights is False:
        nn.init.normal_(B, std=0.02)
    else:
        nn.init.zeros_(B)
