"""A study as users write it. Unknown keys are rejected, so a typo never becomes a default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .compare_spec import CompareSpec, Predictor, SeedsSpec
from .metrics import metrics_of, natural_direction
from .ranges import STRICT, Size
from .search_space import OPTIONAL, SearchSpace
from .search_spec import (
    Concurrency,
    RecheckSpec,
    Retries,
    SearchedParameters,
    SearchSpec,
    StartConfiguration,
    TrialBudget,
)
from .task_spec import Columns, DatasetSpec, TaskSpec
from .training_spec import ResourcesSpec, TrainingSpec
from .vocabulary import (
    PLAIN,
    Direction,
    Dropout,
    InitWeights,
    Name,
    Scaling,
    Targets,
    Text,
)

__all__ = [
    "PLAIN",
    "AdapterSpec",
    "BudgetSpec",
    "Columns",
    "CompareSpec",
    "ComponentSizes",
    "DatasetSpec",
    "Direction",
    "LimitsSpec",
    "ModelSpec",
    "Name",
    "Objective",
    "Predictor",
    "RecheckSpec",
    "ResourcesSpec",
    "SearchSpec",
    "SearchedParameters",
    "SeedsSpec",
    "StartConfiguration",
    "StudyChanges",
    "StudySpec",
    "TaskSpec",
    "Text",
    "TrainingSpec",
]


class ModelSpec(BaseModel):
    """The base model: a hub id, or a folder under ``CDKA_DATA_DIRS``."""

    model_config = STRICT
    path: Text
    revision: Text | None = None


# A part of parameters' names.
GroupName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]


class AdapterSpec(BaseModel):
    """The adapted modules and the adapter on them.

    ``init_weights`` and ``scaling`` are those of ``cdka.CdkaConfig``, for CDKA and KronA; other methods have their own.
    With ``groups``, their modules are adapted, and CDKA has a structure for each group; ``target_modules`` is left out.
    """

    model_config = STRICT
    target_modules: Targets = "all-linear"
    groups: Annotated[dict[GroupName, Targets], Field(min_length=2, max_length=4)] | None = Field(
        default=None, description="Target modules by the name of a group of layers."
    )
    dropout: Dropout = 0.0
    init_weights: InitWeights = "kaiming"
    scaling: Scaling = "cdka"


class ComponentSizes(BaseModel):
    """A component structure."""

    model_config = STRICT
    r1: Size
    r2: Size
    r: Size


class BudgetSpec(BaseModel):
    """The parameter budget. Name it in exactly one of the four ways."""

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
    """A metric and its direction."""

    model_config = STRICT
    metric: Name
    direction: Direction


Priority = Annotated[int, Field(ge=-1000, le=1000)]


class LimitsSpec(BaseModel):
    """Limits of a study and of its trials. All are optional.

    ``hours`` counts from the start of the first trial and ``gpu_hours`` sums over all trials; either ends the study.
    ``trial_minutes`` limits one attempt. ``stall_minutes`` limits the time without progress while the runner is alive.
    """

    model_config = STRICT
    hours: Annotated[float, Field(gt=0, le=87_600)] | None = None
    gpu_hours: Annotated[float, Field(gt=0, le=10_000_000)] | None = None
    gpu_hour_price: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="What an hour of a GPU costs, in your currency; for reports, not a limit."
    )
    trial_minutes: Annotated[float, Field(gt=0, le=525_600)] | None = None
    stall_minutes: Annotated[float, Field(gt=0, le=525_600)] | None = None


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
    objectives: Annotated[list[Objective], Field(max_length=3)] = []
    search: SearchSpec = SearchSpec()
    limits: LimitsSpec = LimitsSpec()
    compare: CompareSpec = CompareSpec()
    resources: ResourcesSpec = ResourcesSpec()
    priority: Priority = 0

    @property
    def all_objectives(self) -> list[Objective]:
        """The objectives; by default the task's metric in its natural direction."""
        return self.objectives or [Objective(metric=self.task.metric, direction=natural_direction(self.task))]

    @property
    def objective(self) -> Objective:
        """The first objective, which the confirmation uses."""
        return self.all_objectives[0]

    @property
    def pruning_metric(self) -> str:
        """The metric that the pruner uses: the declared one, else the first objective's."""
        return self.search.pruning_metric or self.objective.metric

    @property
    def pruning_direction(self) -> Direction:
        """The direction of the pruning metric: as in the objectives, else the metric's natural direction."""
        named = {o.metric: o.direction for o in self.all_objectives}
        return named.get(self.pruning_metric) or metrics_of(self.task).get(
            self.pruning_metric, self.objective.direction
        )

    @property
    def model_key(self) -> str:
        """The key of the base model that a warm runner holds: path, revision, precision and quantisation."""
        key = f"{PurePosixPath(self.model.path)}@{self.model.revision or 'main'}"
        if self.training.precision != "fp32":
            key += f"#{self.training.precision}"
        return key if self.training.quantization == "none" else f"{key}#{self.training.quantization}"

    def for_trial(self, params: Mapping[str, Any]) -> StudySpec:
        """This study with the training and the adapter of one trial."""
        changed: dict[str, Any] = {}
        for section in ("training", "adapter"):
            values = {name: params[name] for name, where in OPTIONAL.items() if where == section and name in params}
            targets = self.search_space.target_modules
            if targets is not None and "target_modules" in values:
                values["target_modules"] = targets.named[values["target_modules"]]
            if values:
                changed[section] = getattr(self, section).model_copy(update=values)
        return self.model_copy(update=changed) if changed else self

    @property
    def settled(self) -> StudySpec:
        """This study with what its search space names with a single value."""
        return self.for_trial(self.search_space.settled())

    @property
    def metrics_wanted(self) -> set[str]:
        """The metrics that are needed; expensive others are not computed."""
        return {o.metric for o in self.all_objectives} | {self.task.metric, self.pruning_metric}


class StudyChanges(BaseModel):
    """The fields of a study that may change while it runs; ``None`` keeps the value."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Name | None = None
    priority: Priority | None = None
    trials: TrialBudget | None = None
    concurrency: Concurrency | None = None
    retries: Retries | None = None
    limits: LimitsSpec | None = None
    seeds: Annotated[int, Field(ge=3, le=100)] | None = Field(
        default=None,
        description="Seeds of each candidate in all, up to which a confirmation adds some while its question is open.",
    )

    def given(self) -> dict[str, Any]:
        """The values that are to change, as they are recorded."""
        return {k: v.model_dump() if isinstance(v, LimitsSpec) else v for k, v in self if v is not None}

    def applied_to(self, spec: StudySpec) -> StudySpec:
        """The spec with these changes."""
        search = {k: v for k in ("trials", "concurrency", "retries") if (v := getattr(self, k)) is not None}
        whole = {k: v for k in ("name", "priority", "limits") if (v := getattr(self, k)) is not None}
        changed = spec.model_copy(update={**whole, "search": spec.search.model_copy(update=search)})
        if self.seeds is None:
            return changed
        first = spec.compare.first_seeds
        looks = SeedsSpec(first=max(3, min(first, self.seeds)), most=self.seeds)
        return changed.model_copy(update={"compare": spec.compare.model_copy(update={"seeds": looks})})
