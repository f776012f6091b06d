"""The search section of a study: sampler, pruner, first trials, recheck."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationInfo, field_validator

from .compare_spec import Predictor
from .group_spec import Repeats
from .ranges import STRICT, Positive, Size
from .search_space import OPTIONAL
from .vocabulary import (
    BatchSize,
    Dropout,
    Epochs,
    InitWeights,
    LoraPlusRatio,
    MaxGradNorm,
    Name,
    Optimizer,
    Scaling,
    Schedule,
    WarmupRatio,
    WeightDecay,
)

TrialBudget = Annotated[int, Field(ge=1, le=100_000)]
Concurrency = Annotated[int, Field(ge=1, le=10_000)]
Retries = Annotated[int, Field(ge=0, le=100)]


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
    target_modules: Name | None = Field(default=None, description="The name of a choice.")

    def optional(self) -> dict[str, Any]:
        """The values that are given for such parameters."""
        return {name: value for name in OPTIONAL if (value := getattr(self, name)) is not None}


class GroupSizes(BaseModel):
    """The component structure of one group of layers."""

    model_config = STRICT
    r1: Size
    r2: Size
    r: Size


# The structures of a configuration, where ``adapter.groups`` names groups.
GroupedSizes = Annotated[dict[Name, GroupSizes], Field(min_length=1, max_length=4)]


class StartConfiguration(SearchedParameters):
    """A configuration that a search starts with.

    By default ``r`` fills the budget, ``alpha`` is the one that the method's authors publish, and the learning rate is
    the middle of those that are searched. In place of r1, r2 and r, ``groups`` gives each of ``adapter.groups`` its
    own.
    """

    groups: GroupedSizes | None = None
    r1: Annotated[Size | None, Field(validate_default=True)] = None
    r2: Annotated[Size | None, Field(validate_default=True)] = None
    r: Size | None = None
    alpha: Positive | None = None
    learning_rate: Positive | None = None

    @field_validator("r1", "r2", "r")
    @classmethod
    def _one_form(cls, size: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("groups") is None:
            if size is None and info.field_name != "r":
                raise ValueError(f"{info.field_name} is required; write r1 and r2, or groups")
        elif size is not None:
            raise ValueError("the groups have sizes of their own; leave this out")
        return size


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
    prior: Literal["predictors", "none"] = Field(
        default="none",
        description="Whether auto and mfgp favour what compare.predictors recommend, less with every trial.",
    )
    repeats: Repeats = Field(
        default=1, description="Above 1, that many studies are made, each searched with another seed: a group."
    )
