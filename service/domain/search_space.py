"""The search space: ranges and choices as users write them, and the structures that the budget admits."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

STRICT = ConfigDict(extra="forbid", frozen=True)
Size = Annotated[int, Field(ge=1, le=65_536, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_NUMBER_FORMS = "write a number, {choices: [...]} or {low: ..., high: ..., log: true}"
_SIZE_FORMS = "write an integer or {choices: [...]}"
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
    choices: Annotated[list[Positive], Field(min_length=1, max_length=64)]


class FloatRange(BaseModel):
    """A number from ``low`` to ``high``, uniform or (``log``) uniform in its logarithm."""

    model_config = STRICT
    low: Positive
    high: Positive
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> FloatRange:
        if self.low >= self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}; write a single value as a number")
        return self

    def grid(self, count: int) -> list[float]:
        """``count`` values spread evenly inside the range (at the midpoints of equal parts)."""
        parts = [(k + 0.5) / count for k in range(count)]
        if self.log:
            a, b = math.log(self.low), math.log(self.high)
            return [math.exp(a + p * (b - a)) for p in parts]
        return [self.low + p * (self.high - self.low) for p in parts]


def _written_as(value: object) -> str:
    """The form that a value is meant to have, so that faults are reported for that form only."""
    if isinstance(value, SizeChoices | FloatChoices) or (isinstance(value, dict) and "choices" in value):
        return "<choices>"
    if isinstance(value, SizeRange | FloatRange | dict):
        return "<range>"
    return "<fill>" if isinstance(value, str) else "<value>"


NumberSpace = Annotated[
    Annotated[FloatRange, Tag("<range>")]
    | Annotated[FloatChoices, Tag("<choices>")]
    | Annotated[Positive, Tag("<value>")],
    Discriminator(_written_as, custom_error_type="space", custom_error_message=_NUMBER_FORMS),
]
SizeSpace = Annotated[
    Annotated[SizeChoices, Tag("<choices>")] | Annotated[Size, Tag("<value>")],
    Discriminator(_written_as, custom_error_type="space", custom_error_message=_SIZE_FORMS),
]
CountSpace = Annotated[
    Annotated[Literal["fill"], Tag("<fill>")] | Annotated[SizeRange, Tag("<range>")] | Annotated[Size, Tag("<value>")],
    Discriminator(_written_as, custom_error_type="space", custom_error_message=_COUNT_FORMS),
]


class SearchSpace(BaseModel):
    """The space over component structure and training.

    ``r: fill`` takes the largest r that the budget admits for each (r1, r2).
    """

    model_config = STRICT
    r1: SizeSpace = SizeChoices(choices=[1, 2, 4])
    r2: SizeSpace = SizeChoices(choices=[1, 2, 4, 8, 16])
    r: CountSpace = "fill"
    alpha: NumberSpace = FloatChoices(choices=[8, 16, 32, 64])
    learning_rate: NumberSpace = FloatRange(low=1e-4, high=5e-3, log=True)

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

    def numbers(self) -> dict[str, Any]:
        """The numeric parameters by name."""
        return {"alpha": self.alpha, "learning_rate": self.learning_rate}


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
