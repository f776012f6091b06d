"""Before the first step of a study: is the untrained model's loss finite, and which adapted layers get a gradient?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..failures import Rejected

_PREFIX = "base_model.model."


def require_finite_loss(trainer: Any, rows: Sequence[dict[str, Any]], numbers: Sequence[int]) -> None:
    """Check the loss of a batch on the untrained model. Changes neither weights nor random numbers.

    Args:
        trainer: the Trainer, with its model in place.
        rows: the batch's examples.
        numbers: their row numbers in the source; empty if an example is not one row.

    Raises:
        Rejected: the loss is not finite; names the weight or the first row to blame.
    """
    with _aside(trainer.model), torch.no_grad():
        loss = _loss(trainer, rows)
        if math.isfinite(loss):
            return
        for name, parameter in trainer.model.named_parameters():
            if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
                raise Rejected(f"the model's weight {_plain(name)} has values that are not finite")
        for k, row in enumerate(rows):
            if not math.isfinite(alone := _loss(trainer, [row])):
                place = f"row {numbers[k]}" if k < len(numbers) else f"example {k + 1}"
                raise Rejected(f"the untrained model's loss on {place} of the train split is {alone}")
    raise Rejected(f"the untrained model's loss on the first {len(rows)} examples of the train split is {loss}")


def layers_without_gradient(trainer: Any, row: dict[str, Any]) -> list[str]:
    """Adapted layers whose adapter gets no gradient from an example. Changes neither weights nor random numbers."""
    model: nn.Module = trainer.model
    with _aside(model):
        batch = _batch(trainer, [row])
        with _context(trainer):
            loss = trainer.compute_loss(model, batch)
        loss.backward()
        found = [
            _plain(name)
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Module)
            and isinstance(layer, BaseTunerLayer)
            and all(p.grad is None for p in layer.parameters() if p.requires_grad)
        ]
        model.zero_grad(set_to_none=True)
    return found


def _loss(trainer: Any, rows: Sequence[dict[str, Any]]) -> float:
    with _context(trainer):
        return float(trainer.compute_loss(trainer.model, _batch(trainer, rows)))


@contextmanager
def _context(trainer: Any) -> Iterator[None]:
    """As in a step. The Trainer leaves autocast to accelerate, which wraps the model when training begins."""
    with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
        yield


def _batch(trainer: Any, rows: Sequence[dict[str, Any]]) -> Any:
    """A batch as the Trainer makes it: of the columns that the model takes."""
    return trainer._prepare_inputs(trainer._get_collator_with_removed_columns(trainer.data_collator)(list(rows)))


@contextmanager
def _aside(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and random numbers that do not count."""
    training = model.training
    model.eval()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        model.train(training)


def _plain(name: str) -> str:
    """A parameter's name without what PEFT adds."""
    return re.sub(r"\.base_layer\b|\.original_module\b|\.modules_to_save\.\w+", "", name.removeprefix(_PREFIX))
