"""A study as a team writes it. Unknown keys are refused, so a typo is never silently a default."""

from __future__ import annotations

from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from .search_space import STRICT, SearchSpace, Size

Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]


class Direction(StrEnum):
    MAXIMIZE = "maximize"
    MINIMIZE = "minimize"


class ModelSpec(BaseModel):
    """The base model: a hub id, or a directory under the allowed data directories."""

    model_config = STRICT
    path: Text
    revision: Text | None = None


class DatasetSpec(BaseModel):
    """What ``datasets.load_dataset`` takes. Files are named relative to the allowed data directories."""

    model_config = STRICT
    path: Text
    name: Text | None = None
    revision: Text | None = None
    data_files: dict[Literal["train", "validation", "test"], Text] | None = None

    @field_validator("data_files")
    @classmethod
    def _has_train(cls, files: dict[str, str] | None) -> dict[str, str] | None:
        if files is not None and "train" not in files:
            raise ValueError("data_files needs a train split")
        return files


class Columns(BaseModel):
    """Which columns of the data hold what."""

    model_config = STRICT
    text: Name = "text"
    text_pair: Name | None = None
    label: Name = "label"


class TaskSpec(BaseModel):
    """What is trained and by what it is judged."""

    model_config = STRICT
    kind: Literal["sequence_classification"]
    dataset: DatasetSpec
    columns: Columns = Columns()
    metric: Name = "accuracy"


class TrainingSpec(BaseModel):
    """The training that all trials share."""

    model_config = STRICT
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 3
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 16
    max_length: Annotated[int, Field(ge=1, le=1_048_576)] = 128
    precision: Literal["fp32", "bf16"] = "fp32"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.06
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    schedule: Literal["linear", "cosine", "constant"] = "linear"


class AdapterSpec(BaseModel):
    """Where the adapter goes."""

    model_config = STRICT
    target_modules: Annotated[list[Name], Field(min_length=1, max_length=256)] | Text = "all-linear"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class ComponentSizes(BaseModel):
    """A component structure."""

    model_config = STRICT
    r1: Size
    r2: Size
    r: Size


class BudgetSpec(BaseModel):
    """The parameter budget, said in one of four ways."""

    model_config = STRICT
    lora_rank: Size | None = None
    max_parameters: Annotated[int, Field(ge=1)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    configuration: ComponentSizes | None = None
    min_fill: Annotated[float, Field(ge=0, le=1)] = 0.85

    @model_validator(mode="after")
    def _one_way(self) -> BudgetSpec:
        ways = ("lora_rank", "max_parameters", "fraction", "configuration")
        given = [way for way in ways if getattr(self, way) is not None]
        if len(given) != 1:
            raise ValueError(f"name the budget in exactly one way out of {', '.join(ways)}; got {given or 'none'}")
        return self


class Objective(BaseModel):
    """A metric and which way is better."""

    model_config = STRICT
    metric: Name
    direction: Direction


class SearchSpec(BaseModel):
    """How the space is searched."""

    model_config = STRICT
    sampler: Name = "tpe"
    pruner: Name = "asha"
    trials: Annotated[int, Field(ge=1, le=100_000)] = 24
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 2
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    retries: Annotated[int, Field(ge=0, le=100)] = 1


class CompareSpec(BaseModel):
    """What is trained again with fresh seeds on the test split, and how learning rates are made fair."""

    model_config = STRICT
    predictors: list[Literal["guideline", "alignment"]] = ["guideline", "alignment"]
    baselines: list[Literal["lora", "rslora", "krona"]] = ["lora"]
    seeds: Annotated[int, Field(ge=0, le=100)] = 5
    learning_rate: Literal["tuned", "shared"] = "tuned"
    tuning_trials: Annotated[int, Field(ge=2, le=100)] = 4


class ResourcesSpec(BaseModel):
    """What one trial holds while it runs."""

    model_config = STRICT
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1
    gpus: Annotated[float, Field(ge=0, le=64)] = 0


class StudySpec(BaseModel):
    """A search for the best component structure of one adapter on one model, task and budget."""

    model_config = STRICT
    name: Name
    model: ModelSpec
    task: TaskSpec
    training: TrainingSpec = TrainingSpec()
    adapter: AdapterSpec = AdapterSpec()
    budget: BudgetSpec
    search_space: SearchSpace = SearchSpace()
    objectives: Annotated[list[Objective], Field(max_length=1)] = []
    search: SearchSpec = SearchSpec()
    compare: CompareSpec = CompareSpec()
    resources: ResourcesSpec = ResourcesSpec()

    @property
    def objective(self) -> Objective:
        """The first objective; the task's metric, maximised, where none is named."""
        return (
            self.objectives[0] if self.objectives else Objective(metric=self.task.metric, direction=Direction.MAXIMIZE)
        )

    @property
    def model_key(self) -> str:
        """What a warm runner holds for this study: base model and revision."""
        return f"{PurePosixPath(self.model.path)}@{self.model.revision or 'main'}"
