"""What a task promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from peft import TaskType

from service.schemas.specs import StudySpec

from ..data import Splits
from ..models import WarmModel


@dataclass(slots=True)
class Prepared:
    """Data ready to train on: tokenised splits, how to batch them, and what the model needs to know of them."""

    train: Any
    validation: Any
    test: Any
    collator: Any
    tokenizer: Any
    origins: dict[str, str]
    facts: dict[str, Any]


@dataclass(slots=True)
class Scores:
    """Metrics over a split; ``per_example`` holds the objective on every example where it is a mean over them."""

    metrics: dict[str, float]
    per_example: list[float] | None


class Task(Protocol):
    """One kind of task: how its data is prepared, its model loaded and its predictions judged."""

    task_type: TaskType

    def prepare(self, study: StudySpec, model_path: str, splits: Splits) -> Prepared:
        """Tokenise the splits.

        Raises:
            Rejected: the data does not fit the task.
        """
        ...

    def load_model(self, study: StudySpec, model_path: str, prepared: Prepared) -> WarmModel:
        """Load the base model for this data.

        Raises:
            Rejected: it cannot be loaded.
        """
        ...

    def score(self, predictions: np.ndarray, labels: np.ndarray, objective: str) -> Scores:
        """Judge predictions (logits, one row an example) by every metric of the task but the loss."""
        ...
