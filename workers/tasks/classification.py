"""Classes of a training split, and classification metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from ..failures import Rejected
from .task import Scores


def label_reader(split: Any, column: str) -> Callable[[Any], Any]:
    """A function that reads a split's labels: as names if the column has them, because numbers may differ per split.

    The reader raises :class:`~workers.failures.Rejected` for a number without a name: the row has no label.
    """
    names = getattr(split.features[column], "names", None)
    if names is None:
        return lambda value: value

    def named(value: Any) -> str:
        if not isinstance(value, int) or not 0 <= value < len(names):
            raise Rejected(f"label {value!r} of column {column!r} has no name: the split is not labelled")
        return str(names[value])

    return named


def classes_of(train: Any, column: str) -> list[Any]:
    """The classes of a column: its feature's names, else its sorted values.

    Raises:
        Rejected: there are fewer than two.
    """
    feature = train.features[column]
    if hasattr(feature, "names"):
        return list(feature.names)
    classes = sorted(set(train[column]), key=str)
    if len(classes) < 2:
        raise Rejected(f"the training split's column {column!r} has {len(classes)} class; at least two are needed")
    return classes


def class_index(index: dict[Any, int], label: Any) -> int:
    """The index of a class.

    Raises:
        Rejected: the training split does not have it.
    """
    if label not in index:
        raise Rejected(f"label {label!r} does not occur in the training split, which has: {', '.join(map(str, index))}")
    return index[label]


def classification_scores(
    chosen: np.ndarray, labels: np.ndarray, classes: int, losses: Sequence[float], objective: str
) -> Scores:
    """Accuracy, macro F1, Matthews correlation and mean loss; with two classes also the F1 of the second (GLUE's)."""
    values = {
        "loss": float(np.mean(losses)),
        "accuracy": float(metrics.accuracy_score(labels, chosen)),
        "f1": float(metrics.f1_score(labels, chosen, average="macro")),
        "matthews_correlation": float(metrics.matthews_corrcoef(labels, chosen)),
    }
    if classes == 2:
        values["f1_positive"] = float(metrics.f1_score(labels, chosen, pos_label=1, zero_division=0.0))
    per_example = {"accuracy": (chosen == labels).astype(float).tolist(), "loss": [float(x) for x in losses]}
    return Scores(values, per_example.get(objective))
