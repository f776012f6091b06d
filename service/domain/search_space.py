"""The search space as users write it, and the structures that the budget admits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import (
    BaseModel,
    Field,
    TypeAdapter,
    ValidationError,
)

from .faults import schema_faults
from .ranges import (
    STRICT,
    CountSpace,
    FloatChoices,
    FloatRange,
    InitSpace,
    IntegerSpace,
    IntRange,
    MethodSpace,
    NumberSpace,
    OptimizerSpace,
    Positive,
    ScalingSpace,
    ScheduleSpace,
    SizeChoices,
    SizeSpace,
    TargetChoices,
)
from .vocabulary import (
    BatchSize,
    Dropout,
    Epochs,
    InitWeights,
    LoraPlusRatio,
    MaxGradNorm,
    Optimizer,
    Scaling,
    Schedule,
    Text,
    WarmupRatio,
    WeightDecay,
)

# What a value of each parameter may be, besides the sizes.
_VALUES: Mapping[str, TypeAdapter[Any]] = {
    "alpha": TypeAdapter(Positive),
    "learning_rate": TypeAdapter(Positive),
    "dropout": TypeAdapter(Dropout),
    "weight_decay": TypeAdapter(WeightDecay),
    "warmup_ratio": TypeAdapter(WarmupRatio),
    "lora_plus_ratio": TypeAdapter(LoraPlusRatio),
    "max_grad_norm": TypeAdapter(MaxGradNorm),
    "batch_size": TypeAdapter(BatchSize),
    "epochs": TypeAdapter(Epochs),
    "schedule": TypeAdapter(Schedule),
    "optimizer": TypeAdapter(Optimizer),
    "init_weights": TypeAdapter(InitWeights),
    "scaling": TypeAdapter(Scaling),
    "target_modules": TypeAdapter(Text),
}
# Parameters of a trial that are searched only where a study's search space names them, by the section that fixes them.
OPTIONAL: Mapping[str, str] = {
    "dropout": "adapter",
    "init_weights": "adapter",
    "scaling": "adapter",
    "target_modules": "adapter",
    **dict.fromkeys(
        (
            *("weight_decay", "warmup_ratio", "lora_plus_ratio", "max_grad_norm"),
            *("batch_size", "epochs", "schedule", "optimizer"),
        ),
        "training",
    ),
}


class SearchSpace(BaseModel):
    """The space over component structure, adapter and training.

    ``r: fill`` takes the largest r that the budget admits for each (r1, r2). The parameters after ``learning_rate`` are
    searched only if they are named; ``training`` and ``adapter`` must leave those out. ``method`` is ``cdka`` unless it
    is named; the sizes of other methods fill the budget, and r1, r2 and r are CDKA's alone. All of ``target_modules``
    have one budget, which is counted on the choice with the most parameters.
    """

    model_config = STRICT
    method: MethodSpace | None = None
    r1: SizeSpace = SizeChoices(choices=[1, 2, 4])
    r2: SizeSpace = SizeChoices(choices=[1, 2, 4, 8, 16])
    r: CountSpace = "fill"
    alpha: NumberSpace = FloatChoices(choices=[8, 16, 32, 64])
    learning_rate: NumberSpace = FloatRange(low=1e-4, high=5e-3, log=True)
    dropout: NumberSpace | None = None
    weight_decay: NumberSpace | None = None
    warmup_ratio: NumberSpace | None = None
    lora_plus_ratio: NumberSpace | None = None
    max_grad_norm: NumberSpace | None = None
    batch_size: IntegerSpace | None = None
    epochs: IntegerSpace | None = None
    schedule: ScheduleSpace | None = None
    optimizer: OptimizerSpace | None = None
    init_weights: InitSpace | None = None
    scaling: ScalingSpace | None = None
    target_modules: TargetChoices | None = None

    def methods(self) -> list[str]:
        """The methods that may be tried."""
        if self.method is None:
            return ["cdka"]
        return [self.method] if isinstance(self.method, str) else list(dict.fromkeys(self.method.choices))

    def r1_sizes(self) -> list[int]:
        """The r1 that may be tried, ascending."""
        return [self.r1] if isinstance(self.r1, int) else sorted(set(self.r1.choices))

    def r2_sizes(self) -> list[int]:
        """The r2 that may be tried, ascending."""
        return [self.r2] if isinstance(self.r2, int) else sorted(set(self.r2.choices))

    def r_bounds(self) -> tuple[int, int] | None:
        """Lowest and highest r asked for; ``None`` for ``fill``."""
        if self.r == "fill":
            return None
        return (self.r, self.r) if isinstance(self.r, int) else (self.r.low, self.r.high)

    def parameters(self) -> dict[str, Any]:
        """The parameters besides the sizes by name, each with a range, choices or its one value."""
        return {name: found for name in _VALUES if (found := getattr(self, name)) is not None}

    def values(self, name: str) -> list[Any] | None:
        """Every value of a parameter besides the sizes, in order; ``None`` if it is a range of real numbers."""
        found = getattr(self, name)
        if isinstance(found, FloatRange):
            return found.grid(1) if found.is_finite else None
        if isinstance(found, IntRange):
            return list(found.values)
        if isinstance(found, TargetChoices):
            return list(found.named)
        if not hasattr(found, "choices"):
            return [found]
        once = list(dict.fromkeys(found.choices))
        return once if isinstance(once[0], str) else sorted(once)

    def settled(self) -> dict[str, Any]:
        """The parameters of training and adapter that are named with a single value."""
        found = {name: self.values(name) for name in OPTIONAL if getattr(self, name) is not None}
        return {name: values[0] for name, values in found.items() if values is not None and len(values) == 1}

    def ends(self, name: str) -> list[Any]:
        """The values that bound a parameter besides the sizes: its choices, or its low and high."""
        found = getattr(self, name)
        return [found.low, found.high] if isinstance(found, FloatRange | IntRange) else self.values(name) or []

    def value_faults(self) -> list[tuple[str, str]]:
        """Pointers within the space to values that a parameter cannot take, and why not."""
        faults = []
        for name, found in self.parameters().items():
            if isinstance(found, TargetChoices):
                continue  # they are checked on the model
            places = [("", found)]
            if isinstance(found, FloatRange | IntRange):
                places = [("/low", found.low), ("/high", found.high)]
            elif hasattr(found, "choices"):
                places = [(f"/choices/{k}", value) for k, value in enumerate(found.choices)]
            for place, value in places:
                try:
                    _VALUES[name].validate_python(value)
                except ValidationError as error:
                    faults += [(f"/{name}{place}", fault.detail) for fault in schema_faults(error)]
        return faults


class Pair(BaseModel):
    """A pair (r1, r2) that divides every adapted layer, with the r that the budget and ``min_fill`` admit."""

    model_config = STRICT
    r1: int
    r2: int
    r_low: int
    r_high: int
    unit_parameters: int = Field(description="Parameters of one component (r = 1).")

    @property
    def order(self) -> tuple[float, int]:
        """Sorts pairs so that similar ones are neighbours: by r2/r1, then by size."""
        return self.r2 / self.r1, self.r1
