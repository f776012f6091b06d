"""Run a model over a split in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from service.schemas.specs import StudySpec

# Larger batches fit without gradients; smaller ones leave the device idle.
LEAST_BATCH = 32


def device_of(model: Any) -> torch.device:
    """The device of a model's parameters."""
    return next(model.parameters()).device  # type: ignore[no-any-return]


def length_order(split: Any, column: str = "input_ids") -> list[int]:
    """Indices of a split's examples, longest first, so that the first batch needs the most memory."""
    if column not in split.column_names:
        return list(range(len(split)))
    lengths = [len(ids) for ids in split[column]]
    return sorted(range(len(lengths)), key=lambda k: (-lengths[k], k))


def batches(
    study: StudySpec, model: Any, split: Any, collator: Any, columns: Sequence[str], size: int | None = None
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Indices and inputs of every batch, on the model's device, under the study's precision."""
    size = size or max(study.training.batch_size, LEAST_BATCH)
    order = length_order(split)
    device = device_of(model)
    present = [c for c in columns if c in split.column_names]
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        rows = [{c: row[c] for c in present} for row in (split[k] for k in chosen)]
        inputs = {name: value.to(device) for name, value in collator(rows).items()}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=study.training.precision == "bf16"):
            yield chosen, inputs


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood and number of labelled tokens of each row.

    Args:
        logits: ``(batch, length, vocabulary)``, aligned with ``labels``.
        labels: ``(batch, length)``; -100 marks positions without a target.
    """
    flat = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.reshape(-1), ignore_index=-100, reduction="none"
    )
    return flat.reshape(labels.shape).double().sum(1).cpu(), (labels != -100).sum(1).cpu()
