"""Tasks by kind, each in its own file behind one Protocol."""

from __future__ import annotations

from .sequence_classification import SequenceClassification
from .task import Task

TASKS: dict[str, Task] = {"sequence_classification": SequenceClassification()}

__all__ = ["TASKS", "Task"]
