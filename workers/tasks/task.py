"""The interface of a task."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from peft import TaskType

from service.schemas.specs import StudySpec

from ..inputs.base_models import WarmModel
from ..inputs.splits import Splits
from ..inputs.token_cache import TokenisedCache


@dataclass(slots=True)
class Prepared:
    """Prepared data: tokenised splits, their collator, and what the model needs to know about them."""

    train: Any
    validation: Any
    test: Any
    collator: Any
    tokenizer: Any
    origins: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    # What is saved with an adapter to process its inputs, if not the tokenizer.
    image_processor: Any = None
    # Row numbers in the source of the examples of train; empty if an example is not one row.
    rows: list[int] = field(default_factory=list)

    @property
    def processing(self) -> Any:
        """The tokenizer or image processor that belongs to the model."""
        return self.tokenizer if self.image_processor is None else self.image_processor


@dataclass(slots=True)
class Scores:
    """Metrics over a split; ``per_example`` holds the objective of every example, if the objective is their mean."""

    metrics: dict[str, float]
    per_example: list[float] | None


class Task(Protocol):
    """One kind of task: how its data is prepared, its model loaded and its predictions judged.

    ``task_type`` is PEFT's name for it. ``heads`` are the modules to train in full that PEFT does not find by the task
    type.
    """

    task_type: TaskType | None
    heads: tuple[str, ...]

    def prepare(self, study: StudySpec, model_path: str, splits: Splits, cache: TokenisedCache) -> Prepared:
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

    def judge(self, study: StudySpec, model: Any, split: Any, prepared: Prepared, wanted: Collection[str]) -> Scores:
        """Judge a model, in evaluation mode and without gradients, on a prepared split.

        Returns the task's metrics; expensive ones only if they are ``wanted``.
        """
        ...
