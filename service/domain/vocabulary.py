"""Types that all parts of a study share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

# No control characters: PostgreSQL cannot store NUL.
PLAIN = r"^[^\x00-\x1f\x7f]*$"
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=PLAIN)]
Text = Annotated[str, Field(min_length=1, max_length=4096, pattern=PLAIN)]


class Direction(StrEnum):
    MAXIMIZE = "maximize"
    MINIMIZE = "minimize"
