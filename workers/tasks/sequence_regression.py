"""Regression on texts and on pairs of texts: one number each, such as a similarity."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from peft import TaskType
from scipy import stats
from transformers import AutoModelForSequenceClassification

from service.schemas.specs import StudySpec

from ..inputs.base_models import WarmModel, load_warm
from ..inputs.splits import Splits
from ..inputs.token_cache import TokenisedCache
from .batches import batches
from .sequence_classification import INPUTS, prepare_texts, set_padding
from .task import Prepared, Scores


class SequenceRegression:
    """See :class:`~workers.tasks.task.Task`. The loss is the mean squared error."""

    task_type: TaskType | None = TaskType.SEQ_CLS
    heads: tuple[str, ...] = ()

    def prepare(self, study: StudySpec, model_path: str, splits: Splits, cache: TokenisedCache) -> Prepared:
        """See :func:`~workers.tasks.sequence_classification.prepare_texts`."""
        return prepare_texts(study, model_path, splits, cache, lambda split, column: float, {})

    def load_model(self, study: StudySpec, model_path: str, prepared: Prepared) -> WarmModel:
        """The encoder or decoder with a head of one output."""
        # In this order: one label does not go with the problem type of a checkpoint that classified.
        warm = load_warm(AutoModelForSequenceClassification, model_path, study, problem_type="regression", num_labels=1)
        set_padding(warm.model, prepared.tokenizer)
        return warm

    def judge(self, study: StudySpec, model: Any, split: Any, prepared: Prepared, wanted: Collection[str]) -> Scores:
        """Pearson and Spearman correlation (0 if one side is constant), mean squared and absolute error."""
        found = np.zeros(len(split))
        labels = np.asarray(split["labels"], dtype=float)
        for chosen, batch in batches(study, model, split, prepared.collator, INPUTS):
            outputs = model(**{k: v for k, v in batch.items() if k != "labels"})
            found[chosen] = outputs.logits[:, 0].double().cpu().numpy()
        squares, distances = (found - labels) ** 2, np.abs(found - labels)
        constant = np.ptp(found) == 0 or np.ptp(labels) == 0
        values = {
            "loss": float(squares.mean()),
            "mse": float(squares.mean()),
            "mae": float(distances.mean()),
            "pearson": 0.0 if constant else float(stats.pearsonr(found, labels).statistic),
            "spearman": 0.0 if constant else float(stats.spearmanr(found, labels).statistic),
        }
        means = {"loss": squares, "mse": squares, "mae": distances}
        per_example = means.get(study.objective.metric)
        return Scores(values, None if per_example is None else per_example.tolist())
