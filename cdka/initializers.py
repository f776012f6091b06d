"""Starting values of the factors, by name.

Those in :data:`INITIALIZERS` draw A and set B to zero, so dW = 0. Two initialisations need more than the shapes:
``weight`` (the base weight, see :meth:`cdka.CdkaLayer.start_from_weight`) and ``gradient``
(:func:`initialize_from_gradients`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .errors import AdapterError, CdkaError
from .rearrangement import nearest_factors


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


@torch.no_grad()
def initialize_from_gradients(
    model: nn.Module, gradients: Mapping[str, Tensor], adapter_name: str = "default", size: float = 0.01
) -> None:
    """Set the factors so that dW points along the negative gradient of full fine-tuning.

    ``dW`` becomes the sum of r Kronecker products nearest to ``-G`` (from the singular vectors of the rearranged
    negative gradient, as in the paper's public code), scaled to ``|dW|_F = size * |W|_F``. So the adapter starts one
    small step of full fine-tuning away from the base model. The size of that step is our choice.

    Args:
        model: a PEFT model with the adapter, or its base model.
        gradients: ``dL/dW`` of shape ``(d_out, d_in)`` by layer name (a suffix of the module's name in ``model``).
        adapter_name: the adapter to fill.
        size: relative size of the first step.

    Raises:
        AdapterError: a layer of the adapter has no gradient, or one that is zero or not finite.
    """
    from .layer import CdkaLayer

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, CdkaLayer) and adapter_name in m.cdka_A]
    if not layers:
        raise AdapterError(f"the model has no CDKA adapter named {adapter_name!r}")
    found = [(layer, _gradient_of(name, gradients)) for name, layer in layers]
    for layer, gradient in found:
        A, B = layer.cdka_A[adapter_name], layer.cdka_B[adapter_name]
        new_A, new_B = nearest_factors(-gradient, A.shape[1], B.shape[2], A.shape[0])
        # |sum_i B_i (x) A_i|_F^2 is the sum of squared singular values; each is the product of its factors' sizes.
        norm = (new_A.flatten(1).norm(dim=1) * new_B.flatten(1).norm(dim=1)).norm()
        weight = layer.get_base_weight().detach().float()
        step = (size * weight.norm() / (norm * layer.scaling[adapter_name])).sqrt()
        A.copy_(new_A * step)
        B.copy_(new_B * step)


def _gradient_of(name: str, gradients: Mapping[str, Tensor]) -> Tensor:
    for key, gradient in gradients.items():
        if name == key or name.endswith(f".{key}"):
            if not torch.isfinite(gradient).all() or not gradient.any():
                raise AdapterError(f"the gradient of {key} is zero or not finite")
            return gradient
    raise AdapterError(f"no gradient for adapted layer {name}; there are gradients for: {', '.join(gradients)}")
