"""A study as users write it. Unknown keys are rejected, so a typo never becomes a default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from .metrics import metrics_of, natural_direction
from .search_space import OPTIONAL, STRICT, Positive, SearchSpace, Size
from .task_spec import Columns, DatasetSpec, TaskSpec
from .training_spec import ResourcesSpec, TrainingSpec
from .vocabulary import (
    PLAIN,
    Baseline,
    BatchSize,
    Direction,
    Dropout,
    Epochs,
    InitWeights,
    LoraPlusRatio,
    MaxGradNorm,
    Name,
    Optimizer,
    Scaling,
    Schedule,
    Text,
    WarmupRatio,
    WeightDecay,
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
    "ResourcesSpec",
    "SearchSpec",
    "StudyChanges",
    "StudySpec",
    "TaskSpec",
    "Text",
    "TrainingSpec",
]


Predictor = Literal["guideline", "alignment", "measured"]


class ModelSpec(BaseModel):
    """The base model: a hub id, or a folder under ``CDKA_DATA_DIRS``."""

    model_config = STRICT
    path: Text
    revision: Text | None = None


class AdapterSpec(BaseModel):
    """The adapted modules and the adapter on them.

    ``init_weights`` and ``scaling`` are those of ``cdka.CdkaConfig``, for CDKA and KronA; other methods have their own.
    """

    model_config = STRICT
    target_modules: Annotated[list[Name], Field(min_length=1, max_length=256)] | Text = "all-linear"
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


TrialBudget = Annotated[int, Field(ge=1, le=100_000)]
Concurrency = Annotated[int, Field(ge=1, le=10_000)]
Retries = Annotated[int, Field(ge=0, le=100)]
Priority = Annotated[int, Field(ge=-1000, le=1000)]


class SearchedParameters(BaseModel):
    """Values of a configuration for the parameters that are searched only in some studies.

    Leave out those that the study's search space does not name. By default one is the value that ``training`` or
    ``adapter`` would have by default, if the space holds it, and else the middle of the space.
    """

    model_config = STRICT
    dropout: Dropout | None = None
    weight_decay: WeightDecay | None = None
    warmup_ratio: WarmupRatio | None = None
    lora_plus_ratio: LoraPlusRatio | None = None
    max_grad_norm: MaxGradNorm | None = None
    batch_size: Annotated[BatchSize, Field(strict=True)] | None = None
    epochs: Annotated[Epochs, Field(strict=True)] | None = None
    schedule: Schedule | None = None
    optimizer: Optimizer | None = None
    init_weights: InitWeights | None = None
    scaling: Scaling | None = None

    def optional(self) -> dict[str, Any]:
        """The values that are given for such parameters."""
        return {name: value for name in OPTIONAL if (value := getattr(self, name)) is not None}


class StartConfiguration(SearchedParameters):
    """A configuration that a search starts with.

    By default ``r`` fills the budget, ``alpha`` is the one that the method's authors publish, and the learning rate is
    the middle of those that are searched.
    """

    r1: Size
    r2: Size
    r: Size | None = None
    alpha: Positive | None = None
    learning_rate: Positive | None = None


def _start_form(value: object) -> str:
    return "<configuration>" if isinstance(value, dict | StartConfiguration) else "<predictor>"


Start = Annotated[
    Annotated[StartConfiguration, Tag("<configuration>")] | Annotated[Predictor, Tag("<predictor>")],
    Discriminator(
        _start_form,
        custom_error_type="start",
        custom_error_message="write a predictor's name or a configuration such as {r1: 2, r2: 8}",
    ),
]


class RecheckSpec(BaseModel):
    """At the end of the search, the ``top`` best configurations are trained again with ``seeds`` other seeds.

    The one with the best mean wins. These trainings come on top of ``search.trials``.
    """

    model_config = STRICT
    top: Annotated[int, Field(ge=2, le=100)] = 3
    seeds: Annotated[int, Field(ge=1, le=20)] = 2


def _recheck_form(value: object) -> str | None:
    if isinstance(value, dict | RecheckSpec):
        return "<recheck>"
    return "<none>" if value == "none" else None


Recheck = Annotated[
    Annotated[RecheckSpec, Tag("<recheck>")] | Annotated[Literal["none"], Tag("<none>")],
    Discriminator(
        _recheck_form,
        custom_error_type="recheck",
        custom_error_message="write none, or how many configurations and seeds, such as {top: 3, seeds: 2}",
    ),
]


class SearchSpec(BaseModel):
    """The search: sampler, pruner, number of trials, and the trials that it starts with.

    ``start`` lists predictors, whose choices run first, and configurations. By default it is the predictors of
    ``compare.predictors``, and empty for a grid.
    """

    model_config = STRICT
    sampler: Name = "auto"
    sampler_options: dict[str, Any] = {}
    pruner: Name = "asha"
    pruner_options: dict[str, Any] = {}
    pruning_metric: Name | None = None
    start: Annotated[list[Start], Field(max_length=1000)] | None = None
    trials: TrialBudget = 24
    concurrency: Concurrency = 2
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    retries: Retries = 1
    replicates: Annotated[int, Field(ge=1, le=100)] = 1
    finished: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=3, description="Where successive halving holds trials, the fewest that run to their end."
    )
    recheck: Recheck = RecheckSpec()


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


class SeedsSpec(BaseModel):
    """Seeds of the confirmation: ``first`` of each candidate, and more in up to four looks, at most ``most``.

    No more are added once the interval against the guideline decides.
    """

    model_config = STRICT
    first: Annotated[int, Field(ge=3, le=100)] = 3
    most: Annotated[int, Field(ge=3, le=100)] = 20

    @model_validator(mode="after")
    def _ordered(self) -> SeedsSpec:
        if self.first > self.most:
            raise ValueError(f"first={self.first} is above most={self.most}")
        return self


def _seeds_form(value: object) -> str | None:
    if isinstance(value, dict | SeedsSpec):
        return "<looks>"
    return "<number>" if isinstance(value, int) and not isinstance(value, bool) else None


Seeds = Annotated[
    Annotated[SeedsSpec, Tag("<looks>")] | Annotated[int, Field(ge=0, le=100), Tag("<number>")],
    Discriminator(
        _seeds_form,
        custom_error_type="seeds",
        custom_error_message="write a number from 0 to 100, or {first: 3, most: 20}",
    ),
]


class CompareSpec(BaseModel):
    """The confirmation: which candidates are trained again with fresh seeds, and how their learning rates are chosen.

    For ``measured``, a runner computes gradients of full fine-tuning on a few batches before the search.
    """

    model_config = STRICT
    predictors: list[Predictor] = ["guideline", "alignment"]
    baselines: list[Baseline] = ["lora"]
    seeds: Seeds = 5
    top: Annotated[int, Field(ge=1, le=10)] = Field(
        default=1, description="How many of the best configurations found are confirmed; for each method, one more."
    )
    learning_rate: Literal["tuned", "shared"] = "tuned"
    tuning_trials: Annotated[int, Field(ge=2, le=100)] = 4
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Differences within it are practically equal: in points for shares such as accuracy (default 0.5), "
        "else in the metric's unit (default 1 % of the best found).",
    )

    @property
    def first_seeds(self) -> int:
        """The seeds with which a confirmation begins; 0: there is none."""
        return self.seeds if isinstance(self.seeds, int) else self.seeds.first


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

    def given(self) -> dict[str, Any]:
        """The values that are to change, as they are recorded."""
        return {k: v.model_dump() if isinstance(v, LimitsSpec) else v for k, v in self if v is not None}

    def applied_to(self, spec: StudySpec) -> StudySpec:
        """The spec with these changes."""
        search = {k: v for k in ("trials", "concurrency", "retries") if (v := getattr(self, k)) is not None}
        whole = {k: v for k in ("name", "priority", "limits") if (v := getattr(self, k)) is not None}
        return spec.model_copy(update={**whole, "search": spec.search.model_copy(update=search)})
