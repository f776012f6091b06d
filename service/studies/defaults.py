"""Values for parameters that nobody has searched yet."""

from __future__ import annotations

from typing import Any

from ..domain.search_space import OPTIONAL, SearchSpace
from ..domain.study_spec import AdapterSpec
from ..domain.training_spec import TrainingSpec

# The alpha of (2, 8, 4) in the authors' model card and in each of their reference configurations that have r1 and r2
# (github.com/rainstonee/CDKA). A port by others says 16.
PUBLISHED_ALPHA = 64.0
# How its factors start and scale; a study may search others.
PUBLISHED_ADAPTER = {"init_weights": "kaiming", "scaling": "cdka"}


def typical(space: SearchSpace, name: str) -> Any:
    """A parameter's default in ``training`` or ``adapter`` if the space holds it, and else the middle of the space."""
    section = {"training": TrainingSpec(), "adapter": AdapterSpec()}.get(OPTIONAL.get(name, ""))
    default = getattr(section, name, None)
    found, values = getattr(space, name), space.values(name)
    if values is not None:
        return default if default in values else values[(len(values) - 1) // 2]
    return default if default is not None and found.low <= default <= found.high else found.middle
