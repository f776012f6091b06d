"""What a study comes to on its model: adapted layers, budget in parameters, admitted structures.

Computed once, when the study is created, and stored with it, so that nothing later needs the model.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from .search_space import Structure


class LayerShape(BaseModel):
    """An adapted layer: its weight has shape ``(d_out, d_in)``."""

    model_config = ConfigDict(frozen=True)
    name: str
    d_in: int
    d_out: int


class Plan(BaseModel):
    """The resolved side of a study."""

    model_config = ConfigDict(frozen=True)
    shapes: tuple[LayerShape, ...]
    max_parameters: int
    min_fill: float
    base_parameters: int
    structures: tuple[Structure, ...] = Field(description="In the order of ``Structure.order``.")

    def structure(self, r1: int, r2: int) -> Structure | None:
        """The admitted structure with these sizes, if it is one."""
        return next((s for s in self.structures if (s.r1, s.r2) == (r1, r2)), None)
