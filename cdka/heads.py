"""What is a head: the one rule that plans, loaders and adapters share."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

WITH_HEAD = ("sequence_classification", "sequence_regression", "image_classification")
# The heads of models that do not say which of their children is the pretrained base.
_USUAL_HEADS = ("classifier", "score")
POOLER = "pooler"


def head_modules(model: nn.Module, task_kind: str | None, weights: Collection[str] | None = None) -> tuple[str, ...]:
    """Names of the modules that are trained in full beside an adapter and never adapted.

    These are a classification or regression model's children outside of its pretrained base
    (``base_model_prefix``), such as ``pre_classifier`` and ``classifier``. The base's pooler is one of them if the
    checkpoint lacks it, as those of masked language models do. Language models have none: their output layer is
    pretrained.

    Args:
        model: an AutoModel of ``task_kind``.
        task_kind: the kind of task.
        weights: the names of the checkpoint's tensors; ``None`` takes the base to be complete.
    """
    if task_kind not in WITH_HEAD:
        return ()
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, None) if prefix else None
    children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    if not isinstance(base, nn.Module):
        return tuple(name for name in children if name in _USUAL_HEADS)
    heads = [name for name in children if name != prefix]
    pooler = getattr(base, POOLER, None)
    has_pooler = isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters())
    if has_pooler and weights is not None and not any(POOLER in name.split(".") for name in weights):
        heads.insert(0, f"{prefix}.{POOLER}")
    return tuple(heads)


def is_in_heads(name: str, heads: Collection[str]) -> bool:
    """Whether a module or parameter is one of the heads or inside one."""
    return any(name == head or name.startswith(f"{head}.") for head in heads)
