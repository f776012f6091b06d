"""The classes of a classification, in the order of the model's outputs, and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics
from transformers import AutoConfig

import cdka
from service.schemas.specs import BadRows, StudySpec

from ..inputs.bad_rows import BadRow, SplitFindings, refuse
from ..inputs.base_models import WarmModel, load_warm
from ..inputs.labels import UNKNOWN, classes_of, in_order_of
from ..inputs.splits import SPLITS, Splits
from ..inputs.values import check_labels, check_values, label, names_in
from .task import Scores


def ordered_classes(study: StudySpec, model_path: str, splits: Splits) -> list[str]:
    """The classes as declared; else in the order of the model's head, if that names the same ones, or in natural order.

    So a head that was trained on these classes keeps their meaning.
    """
    if study.task.labels is not None:
        return list(study.task.labels)
    classes = splits.classes or _classes_of_custom(study, splits)
    return in_order_of(classes, outputs_of(study, model_path)) or classes


def outputs_of(study: StudySpec, model_path: str) -> list[str]:
    """The names of a model's outputs by its config; none if it has no head or cannot be read."""
    where, file = cdka.model_source(model_path)
    if file is not None:
        return []
    try:
        config = AutoConfig.from_pretrained(where, revision=study.model.revision, trust_remote_code=False)
        return [str(config.id2label[k]) for k in range(len(config.id2label))]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        # Loading the model says what is wrong with its config.
        return []


def load_classifier(auto_class: Any, study: StudySpec, model_path: str, classes: Sequence[str]) -> WarmModel:
    """A model with a head of one logit per class.

    The checkpoint's own head is kept if it names these classes, else it is initialised anew.
    """
    return load_warm(
        auto_class,
        model_path,
        study,
        keep_head=in_order_of(classes, outputs_of(study, model_path)) == list(classes),
        # A checkpoint's own would choose another loss.
        problem_type="single_label_classification",
        num_labels=len(classes),
        id2label=dict(enumerate(classes)),
        label2id={label: k for k, label in enumerate(classes)},
    )


def _classes_of_custom(study: StudySpec, splits: Splits) -> list[str]:
    """The classes where a custom task prepares its data as a built-in one; its values have not been checked."""
    column = study.task.roles["label"]
    rows = {name: (getattr(splits, name), splits.parts[name].numbers) for name in SPLITS}

    def refused(bad: dict[str, list[BadRow]]) -> None:
        refuse(SplitFindings(name, len(rows[name][0]), BadRows.REJECT, found) for name, found in bad.items())

    refused({name: list(check_values(*found, {column: label})) for name, found in rows.items()})
    classes = classes_of(study.task, splits.train, column, names_in(splits.train, column))
    refused({name: check_labels(*found, column, classes, declared=False) for name, found in rows.items()})
    return classes


def classification_scores(
    chosen: np.ndarray, labels: np.ndarray, classes: int, losses: Sequence[float], objective: str
) -> Scores:
    """Accuracy, macro F1, Matthews correlation and mean loss; with two classes also the F1 of the second (GLUE's).

    Labels of :data:`~workers.inputs.labels.UNKNOWN` are wrong whatever was chosen. They are no class of their own in
    F1, and ``losses`` are those of the other rows.
    """
    known = labels != UNKNOWN
    there = np.union1d(labels[known], chosen)
    values = {
        "loss": float(np.mean(losses)),
        "accuracy": float(metrics.accuracy_score(labels, chosen)),
        "f1": float(metrics.f1_score(labels, chosen, labels=there, average="macro", zero_division=0.0)),
        "matthews_correlation": float(metrics.matthews_corrcoef(labels, chosen)),
    }
    if classes == 2:
        f1 = metrics.f1_score(labels, chosen, labels=[1], average="macro", zero_division=0.0)
        values["f1_positive"] = float(f1)
    per_example = {"accuracy": (chosen == labels).astype(float).tolist(), "loss": [float(x) for x in losses]}
    return Scores(values, per_example.get(objective))
