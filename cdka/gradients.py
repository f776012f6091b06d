"""Gradients of full fine-tuning: collected layer by layer within bounded memory, and as a start for adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .counts import Configuration, ModuleShape
from .errors import AdapterError, CdkaError
from .layer import CdkaLayer
from .rearrangement import nearest_factors, rearrange

Loss = Callable[[nn.Module, Any], Tensor]
EXACT_UP_TO = 256
OVERSAMPLING = 10
POWER_ITERATIONS = 2


@dataclass(frozen=True, slots=True)
class Spectra:
    """How much of the squared gradient norm r Kronecker components can hold, by component size.

    ``captured[r1, r2][k - 1]`` is the sum, over layers and batches, of the k largest squared singular values of the
    rearranged gradient; ``total`` is the squared norm of all gradients.
    """

    captured: Mapping[tuple[int, int], tuple[float, ...]]
    total: float

    def share(self, r1: int, r2: int, r: int) -> float:
        """Share of the squared gradient norm in the r leading components.

        Raises:
            CdkaError: the spectra were not collected for ``(r1, r2)``, or only for fewer components.
        """
        values = self.captured.get((r1, r2))
        if values is None or r > len(values):
            raise CdkaError(f"no spectrum was measured for (r1, r2, r) = ({r1}, {r2}, {r})")
        return values[r - 1] / self.total


def collect_spectra(
    model: nn.Module,
    batches: Iterable[Any],
    shapes: Sequence[ModuleShape],
    candidates: Sequence[Configuration],
    loss: Loss | None = None,
    seed: int = 0,
) -> Spectra:
    """Run every batch forward and backward, and keep the spectra of the rearranged gradients of the layers' weights.

    Each gradient is processed in the backward pass as soon as it is complete and then freed, so that only one layer's
    gradient is held at a time, in fp32. The model's weights, gradients and ``requires_grad`` are left as they were.
    Singular values are exact if the smaller side of the rearranged gradient is at most 256; otherwise they come from a
    randomised SVD (Halko, Martinsson, Tropp 2011) with two power iterations.

    Args:
        model: the base model; dropout follows its mode (train or eval).
        batches: inputs of ``loss``; by default mappings of the model's arguments, including labels.
        shapes: the layers to measure, by their names in ``model``.
        candidates: the configurations to collect spectra for.
        loss: ``(model, batch) -> scalar``; by default ``model(**batch).loss``.
        seed: seed of the randomised SVD.

    Raises:
        AdapterError: a layer is missing or has another shape, a weight cannot have a gradient, there is no batch, or
            a gradient is not finite.
    """
    wanted: dict[tuple[int, int], int] = {}
    for c in candidates:
        wanted[c.r1, c.r2] = max(wanted.get((c.r1, c.r2), 0), c.r)
    collector = _Collector(wanted, torch.Generator().manual_seed(seed))
    compute = loss or (lambda model, batch: model(**batch).loss)
    seen = 0
    with _watched(model, shapes, collector):
        for batch in batches:
            compute(model, batch).backward()
            seen += 1
    if not seen or collector.total == 0:
        raise AdapterError("no gradient was collected: give at least one batch that reaches the adapted layers")
    return Spectra({pair: tuple(v.cumsum(0).tolist()) for pair, v in collector.squares.items()}, collector.total)


class _Collector:
    def __init__(self, wanted: Mapping[tuple[int, int], int], generator: torch.Generator) -> None:
        self.wanted = wanted
        self.generator = generator
        self.squares = {pair: torch.zeros(r, dtype=torch.float64) for pair, r in wanted.items()}
        self.total = 0.0

    def add(self, name: str, gradient: Tensor) -> None:
        total = float(gradient.double().square().sum())
        if not torch.isfinite(torch.tensor(total)):
            raise AdapterError(f"the gradient of {name} is not finite")
        self.total += total
        for (r1, r2), r in self.wanted.items():
            values = leading_singular_values(rearrange(gradient, r1, r2), r, self.generator).double().square().cpu()
            self.squares[r1, r2][: len(values)] += values


def leading_singular_values(matrix: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The ``count`` largest singular values, or all where there are fewer; exact for small matrices."""
    rank = count + OVERSAMPLING
    if min(matrix.shape) <= max(EXACT_UP_TO, rank):
        return torch.linalg.svdvals(matrix)[:count]  # type: ignore[no-any-return]
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    Q = torch.randn(matrix.shape[1], rank, generator=generator).to(matrix)
    for _ in range(POWER_ITERATIONS):
        Q = torch.linalg.qr(matrix.T @ torch.linalg.qr(matrix @ Q).Q).Q
    return torch.linalg.svdvals(matrix @ Q)[:count]  # type: ignore[no-any-return]


@contextmanager
def _watched(model: nn.Module, shapes: Sequence[ModuleShape], collector: _Collector) -> Iterator[None]:
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    handles = []
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for shape in shapes:
            weight, transposed = _weight(model, shape)
            weight.requires_grad_(True)

            def look(weight: Tensor, name: str = shape.name, transposed: bool = transposed) -> None:
                assert weight.grad is not None
                gradient = weight.grad.detach().float()
                weight.grad = None
                collector.add(name, gradient.T if transposed else gradient.flatten(1))

            handles.append(weight.register_post_accumulate_grad_hook(look))  # type: ignore[no-untyped-call]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient


def _weight(model: nn.Module, shape: ModuleShape) -> tuple[Tensor, bool]:
    try:
        module = model.get_submodule(shape.name)
    except AttributeError as error:
        raise AdapterError(f"the model has no layer {shape.name}") from error
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise AdapterError(f"the weight of {shape.name} cannot have a gradient (is it quantised?)")
    transposed = isinstance(module, Conv1D)
    if weight.numel() != shape.d_in * shape.d_out:
        raise AdapterError(
            f"{shape.name} has a weight of shape {tuple(weight.shape)}, not {shape.d_out} x {shape.d_in}"
        )
    return weight, transposed


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
