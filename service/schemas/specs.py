"""What a study says, for those who run it."""

from ..domain.inputs import InputFile, Inputs, InputSplit, changes_told
from ..domain.metrics import PARAMETERS
from ..domain.plan import LayerShape
from ..domain.shape import GIB, Shape
from ..domain.states import FailureKind, StopReason, TrialPhase
from ..domain.structure import SIZES, by_group
from ..domain.study_spec import AdapterSpec, StudySpec
from ..domain.task_spec import (
    CLASSIFICATION,
    BadRows,
    CustomSpec,
    DatasetSpec,
    DataSource,
    FormatSpec,
    GenerationSpec,
    TaskKind,
    TaskSpec,
    template_fields,
)
from ..domain.training_spec import TrainingSpec

__all__ = [
    "CLASSIFICATION",
    "GIB",
    "PARAMETERS",
    "SIZES",
    "AdapterSpec",
    "BadRows",
    "CustomSpec",
    "DataSource",
    "DatasetSpec",
    "FailureKind",
    "FormatSpec",
    "GenerationSpec",
    "InputFile",
    "InputSplit",
    "Inputs",
    "LayerShape",
    "Shape",
    "StopReason",
    "StudySpec",
    "TaskKind",
    "TaskSpec",
    "TrainingSpec",
    "TrialPhase",
    "by_group",
    "changes_told",
    "template_fields",
]
