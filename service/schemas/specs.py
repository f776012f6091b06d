"""What a study says, for those who run it."""

from ..domain.states import FailureKind
from ..domain.study_spec import AdapterSpec, StudySpec
from ..domain.task_spec import (
    CustomSpec,
    DatasetSpec,
    DataSource,
    GenerationSpec,
    TaskKind,
    TaskSpec,
    template_fields,
)
from ..domain.training_spec import TrainingSpec

__all__ = [
    "AdapterSpec",
    "CustomSpec",
    "DataSource",
    "DatasetSpec",
    "FailureKind",
    "GenerationSpec",
    "StudySpec",
    "TaskKind",
    "TaskSpec",
    "TrainingSpec",
    "template_fields",
]
