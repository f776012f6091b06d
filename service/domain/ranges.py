"""Ranges and choices of a search space as users write them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from .vocabulary import InitWeights, Method, Name, Optimizer, Scaling, Schedule, Targets

STRICT = ConfigDict(extra="forbid", frozen=True)


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("write a number, not true or false")
    return value


Size = Annotated[int, Field(ge=1, le=65_536, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, BeforeValidator(_no_boolean), Field(allow_inf_nan=False)]

_NUMBER_FORMS = "write a number, {choices: [...]} or {low: ..., high: ..., log: true}"
_INTEGER_FORMS = "write an integer, {choices: [...]} or {low: ..., high: ..., step: ...}"
_NAME_FORMS = "write a name or {choices: [...]}"
_SIZE_FORMS = "write an integer or {choices: [...]}"
_TARGET_FORMS = "write a list of target modules, or a mapping from names to target modules"
_COUNT_FORMS = "write fill, an integer or {low: ..., high: ...}"


class SizeChoices(BaseModel):
    """A component size from a list."""

    model_config = STRICT
    choices: Annotated[list[Size], Field(min_length=1, max_length=64)]


class SizeRange(BaseModel):
    """Every integer from ``low`` to ``high``, both included."""

    model_config = STRICT
    low: Size
    high: Size

    @model_validator(mode="after")
    def _ordered(self) -> SizeRange:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        return self


class FloatChoices(BaseModel):
    """A number from a list."""

    model_config = STRICT
    choices: Annotated[list[Finite], Field(min_length=1, max_length=64)]


class FloatRange(BaseModel):
    """A number from ``low`` to ``high``: uniform, uniform in its logarithm (``log``), or in steps from ``low`` on."""

    model_config = STRICT
    low: Finite
    high: Finite
    log: bool = False
    step: Positive | None = None

    @model_validator(mode="after")
    def _ordered(self) -> FloatRange:
        _require_range(self.low, self.high, self.step, self.log)
        return self

    @property
    def is_finite(self) -> bool:
        """Whether it holds finitely many values."""
        return self.step is not None

    def grid(self, count: int) -> list[float]:
        """``count`` values spread evenly inside the range (at the midpoints of equal parts); all values of steps."""
        if self.step is not None:
            return [_rounded(self.low + k * self.step) for k in range(round((self.high - self.low) / self.step) + 1)]
        parts = [(k + 0.5) / count for k in range(count)]
        if self.log:
            a, b = math.log(self.low), math.log(self.high)
            return [math.exp(a + p * (b - a)) for p in parts]
        return [self.low + p * (self.high - self.low) for p in parts]

    def spread(self, count: int) -> list[float]:
        """At most ``count`` values spread evenly inside the range; of steps, such that are values of it."""
        values = self.grid(count)
        if len(values) <= count:
            return values
        return [values[min(len(values) - 1, int((k + 0.5) * len(values) / count))] for k in range(count)]

    def nearest(self, value: float) -> float:
        """The value itself, or without the error of adding steps."""
        return value if self.step is None else _rounded(self.low + round((value - self.low) / self.step) * self.step)

    @property
    def middle(self) -> float:
        """The middle, in its logarithm if it is searched so."""
        if self.step is not None:
            values = self.grid(1)
            return values[(len(values) - 1) // 2]
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2


class IntChoices(BaseModel):
    """An integer from a list."""

    model_config = STRICT
    choices: Annotated[list[Annotated[int, Field(strict=True)]], Field(min_length=1, max_length=64)]


class IntRange(BaseModel):
    """An integer from ``low`` to ``high`` in steps, or (``log``) uniform in its logarithm."""

    model_config = STRICT
    low: Size
    high: Size
    log: bool = False
    step: Size = 1

    @model_validator(mode="after")
    def _ordered(self) -> IntRange:
        _require_range(self.low, self.high, None if self.step == 1 else self.step, self.log)
        return self

    @property
    def values(self) -> range:
        """Every integer that it holds."""
        return range(self.low, self.high + 1, self.step)


class ScheduleChoices(BaseModel):
    """A schedule of the learning rate from a list."""

    model_config = STRICT
    choices: Annotated[list[Schedule], Field(min_length=1)]


class OptimizerChoices(BaseModel):
    """An optimizer from a list."""

    model_config = STRICT
    choices: Annotated[list[Optimizer], Field(min_length=1)]


class InitChoices(BaseModel):
    """An initialisation from a list."""

    model_config = STRICT
    choices: Annotated[list[InitWeights], Field(min_length=1)]


class ScalingChoices(BaseModel):
    """A scaling rule from a list."""

    model_config = STRICT
    choices: Annotated[list[Scaling], Field(min_length=1)]


class MethodChoices(BaseModel):
    """A method from a list, each at the study's parameter budget."""

    model_config = STRICT
    choices: Annotated[list[Method], Field(min_length=1)]


def _targets_as(value: object) -> str | None:
    if isinstance(value, dict):
        return "<named>"
    return "<listed>" if isinstance(value, list) else None


class TargetChoices(BaseModel):
    """Target modules from a list, or from a mapping that gives each choice a name.

    In a list, a string is its own name, and names of modules are joined by ``+``.
    """

    model_config = STRICT
    choices: Annotated[
        Annotated[dict[Name, Targets], Field(min_length=1, max_length=16), Tag("<named>")]
        | Annotated[list[Targets], Field(min_length=1, max_length=16), Tag("<listed>")],
        Discriminator(_targets_as, custom_error_type="space", custom_error_message=_TARGET_FORMS),
    ]

    @model_validator(mode="after")
    def _short(self) -> TargetChoices:
        long = next((name for name in self.named if len(name) > 200), None)
        if long is not None:
            raise ValueError(f"{long[:40]}... is long; give the choices names: {{choices: {{attention: [...]}}}}")
        return self

    @property
    def named(self) -> dict[str, list[str] | str]:
        """The target modules by the name of their choice."""
        if isinstance(self.choices, dict):
            return dict(self.choices)
        return {targets if isinstance(targets, str) else "+".join(targets): targets for targets in self.choices}


def _require_range(low: float, high: float, step: float | None, log: bool) -> None:
    """Check that a range holds more than one value, and that its step leads from one end to the other.

    Raises:
        ValueError: it does not; says what would be right.
    """
    if low >= high:
        raise ValueError(f"low={low} is not below high={high}; write a single value as a number")
    if log and low <= 0:
        raise ValueError("log needs a low above 0; write a small number such as 1e-4, or leave log out")
    if step is None:
        return
    if log:
        raise ValueError("log and step exclude each other; leave one out")
    count = (high - low) / step
    if count > 10_000:
        raise ValueError(f"step={step:g} makes {count:,.0f} values; leave it out, or make it larger")
    if abs(count - round(count)) > 1e-6:
        nearest = [_rounded(low + k * step) for k in (math.floor(count), math.ceil(count))]
        raise ValueError(
            f"step={step:g} leads from {low:g} to {nearest[0]:g} and {nearest[1]:g}, not to high={high:g}; "
            f"write one of them as high"
        )


def _rounded(value: float) -> float:
    """Without the error of adding steps such as 0.1."""
    return float(f"{value:.12g}")


def _written_as(value: object) -> str:
    """The form that a value is meant to have, so that faults are reported for that form only."""
    if hasattr(value, "choices") or (isinstance(value, dict) and "choices" in value):
        return "<choices>"
    if isinstance(value, SizeRange | FloatRange | IntRange | dict):
        return "<range>"
    return "<fill>" if isinstance(value, str) else "<value>"


def _named_as(value: object) -> str:
    return "<choices>" if hasattr(value, "choices") or isinstance(value, dict) else "<value>"


NumberSpace = Annotated[
    Annotated[FloatRange, Tag("<range>")]
    | Annotated[FloatChoices, Tag("<choices>")]
    | Annotated[Finite, Tag("<value>")],
    Discriminator(_written_as, custom_error_type="space", custom_error_message=_NUMBER_FORMS),
]
IntegerSpace = Annotated[
    Annotated[IntRange, Tag("<range>")] | Annotated[IntChoices, Tag("<choices>")] | Annotated[Size, Tag("<value>")],
    Discriminator(_written_as, custom_error_type="space", custom_error_message=_INTEGER_FORMS),
]
_NAMED = Discriminator(_named_as, custom_error_type="space", custom_error_message=_NAME_FORMS)
ScheduleSpace = Annotated[Annotated[ScheduleChoices, Tag("<choices>")] | Annotated[Schedule, Tag("<value>")], _NAMED]
OptimizerSpace = Annotated[Annotated[OptimizerChoices, Tag("<choices>")] | Annotated[Optimizer, Tag("<value>")], _NAMED]
InitSpace = Annotated[Annotated[InitChoices, Tag("<choices>")] | Annotated[InitWeights, Tag("<value>")], _NAMED]
MethodSpace = Annotated[Annotated[MethodChoices, Tag("<choices>")] | Annotated[Method, Tag("<value>")], _NAMED]
ScalingSpace = Annotated[Annotated[ScalingChoices, Tag("<choices>")] | Annotated[Scaling, Tag("<value>")], _NAMED]
SizeSpace = Annotated[
    Annotated[SizeChoices, Tag("<choices>")] | Annotated[Size, Tag("<value>")],
    Discriminator(_written_as, custom_error_type="space", custom_error_message=_SIZE_FORMS),
]
CountSpace = Annotated[
    Annotated[Literal["fill"], Tag("<fill>")] | Annotated[SizeRange, Tag("<range>")] | Annotated[Size, Tag("<value>")],
    Discriminator(_written_as, custom_error_type="space", custom_error_message=_COUNT_FORMS),
]
