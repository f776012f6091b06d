"""What a study says, for those who run it."""

from ..domain.states import FailureKind
from ..domain.study_spec import AdapterSpec, DatasetSpec, StudySpec, TaskSpec, TrainingSpec

__all__ = ["AdapterSpec", "DatasetSpec", "FailureKind", "StudySpec", "TaskSpec", "TrainingSpec"]
