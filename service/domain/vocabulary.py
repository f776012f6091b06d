"""Types that all parts of a study share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

# No control characters: PostgreSQL cannot store NUL.
PLAIN = r"^[^\x00-\x1f\x7f]*$"
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=PLAIN)]
Text = Annotated[str, Field(min_length=1, max_length=4096, pattern=PLAIN)]
# Modules to adapt: all-linear, a list of names, or a pattern.
Targets = Annotated[list[Name], Field(min_length=1, max_length=256)] | Text


class Direction(StrEnum):
    MAXIMIZE = "maximize"
    MINIMIZE = "minimize"


# Parameters of a trial's training and adapter; each is fixed for a study or searched.
Dropout = Annotated[float, Field(ge=0, lt=1)]
WeightDecay = Annotated[float, Field(ge=0, le=1)]
WarmupRatio = Annotated[float, Field(ge=0, lt=1)]
LoraPlusRatio = Annotated[float, Field(ge=1, le=1000)]
MaxGradNorm = Annotated[float, Field(gt=0, le=1e6)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
Schedule = Literal["linear", "cosine", "constant"]
Optimizer = Literal["adamw", "adamw_fused", "adafactor", "sgd"]
InitWeights = Literal["kaiming", "gaussian", "orthogonal"]
Scaling = Literal["cdka", "rslora", "constant"]
Method = Literal["cdka", "krona", "lora", "rslora", "dora", "miss", "lokr", "full"]
Baseline = Literal["lora", "rslora", "dora", "miss", "lokr", "krona", "full"]
