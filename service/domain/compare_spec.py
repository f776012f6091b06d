"""The comparison section of a study: candidates, seeds, margin."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from .ranges import STRICT
from .vocabulary import (
    Baseline,
)

Predictor = Literal["guideline", "alignment", "measured"]


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
