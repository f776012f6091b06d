"""Tasks by kind, each in its own file behind one Protocol."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping

from service.schemas.specs import TaskKind, TaskSpec

from ..failures import Rejected
from .causal_lm import CausalLM
from .image_classification import ImageClassification
from .seq2seq_lm import Seq2SeqLM
from .sequence_classification import SequenceClassification
from .sequence_regression import SequenceRegression
from .task import Task

TASKS: dict[str, Task] = {
    TaskKind.SEQUENCE_CLASSIFICATION: SequenceClassification(),
    TaskKind.SEQUENCE_REGRESSION: SequenceRegression(),
    TaskKind.CAUSAL_LM: CausalLM(),
    TaskKind.SEQ2SEQ_LM: Seq2SeqLM(),
    TaskKind.IMAGE_CLASSIFICATION: ImageClassification(),
}


def find_task(spec: TaskSpec, own: Mapping[str, str]) -> Task:
    """The task of a study: a built-in one, or a custom one by its name in ``CDKA_TASKS``.

    Raises:
        Rejected: this runner has no such task, or cannot import it.
    """
    if spec.custom is None:
        return TASKS[spec.kind]
    name = spec.custom.name
    if name not in own:
        raise Rejected(f"this runner has no task {name!r} (CDKA_TASKS); it has: {', '.join(own) or 'no custom tasks'}")
    try:
        made: Task = pkgutil.resolve_name(own[name])()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise Rejected(f"the task {name!r} cannot be created from {own[name]!r}: {error}") from error
    return made


__all__ = ["TASKS", "Task", "find_task"]
