"""A study resolved on its model: adapted layers, budget in parameters, admitted structures.

Computed once, when the study is created, and stored with it, so that nothing later needs the model.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, computed_field

from .search_space import Pair


class LayerShape(BaseModel):
    """An adapted layer: its weight has shape ``(d_out, d_in)``."""

    model_config = ConfigDict(frozen=True)
    name: str
    d_in: int
    d_out: int


class MemoryNeed(BaseModel):
    """Estimated peak memory of one process of a trial in bytes, by purpose.

    ``training`` is the adapter with gradients and optimizer. A device's context and fragmentation come on top.
    """

    model_config = ConfigDict(frozen=True)
    weights: int
    training: int
    activations: int

    @computed_field  # type: ignore[prop-decorator]  # mypy does not support decorated properties
    @property
    def peak(self) -> int:
        """The sum."""
        return self.weights + self.training + self.activations


class MethodSize(BaseModel):
    """The sizes with which a method other than CDKA fills the budget."""

    model_config = ConfigDict(frozen=True)
    sizes: dict[str, int]
    parameters: int


class Plan(BaseModel):
    """A study resolved on its model."""

    model_config = ConfigDict(frozen=True)
    shapes: tuple[LayerShape, ...]
    max_parameters: int
    min_fill: float
    base_parameters: int
    structures: tuple[Pair, ...] = Field(description="The admitted pairs, in the order of ``Pair.order``.")
    methods: dict[str, MethodSize] = Field(default={}, description="The other methods that the search may try.")
    notes: tuple[str, ...] = Field(default=(), description="Layers and weights that are not adapted, and why.")
    memory: MemoryNeed | None = Field(default=None, description="Null if the memory cannot be estimated.")

    def pair(self, r1: int, r2: int) -> Pair | None:
        """The admitted pair with these sizes, if there is one."""
        return next((s for s in self.structures if (s.r1, s.r2) == (r1, r2)), None)
