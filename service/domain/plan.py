"""A study resolved on its model: adapted layers, budget in parameters, admitted structures.

Computed once, when the study is created, and stored with it, so that nothing later needs the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field

from .search_space import Pair
from .structure import Structure, uniform


class LayerShape(BaseModel):
    """An adapted layer: its weight has shape ``(d_out, d_in)``."""

    model_config = ConfigDict(frozen=True)
    name: str
    d_in: int
    d_out: int
    group: str | None = Field(default=None, description="The group of layers to which it belongs.")


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


class Target(BaseModel):
    """What a budget admits on one choice of target modules; fields as in :class:`Plan`."""

    model_config = ConfigDict(frozen=True)
    shapes: tuple[LayerShape, ...]
    structures: tuple[Pair, ...]
    methods: dict[str, MethodSize] = {}


class Plan(BaseModel):
    """A study resolved on its model."""

    model_config = ConfigDict(frozen=True)
    shapes: tuple[LayerShape, ...]
    max_parameters: int
    min_fill: float
    base_parameters: int
    structures: tuple[Pair, ...] = Field(description="The admitted pairs, in the order of ``Pair.order``.")
    prior: tuple[float, ...] = Field(
        default=(), description="How the predictors rate each pair, from 0 to 1; empty if they say nothing of it."
    )
    methods: dict[str, MethodSize] = Field(default={}, description="The other methods that the search may try.")
    notes: tuple[str, ...] = Field(default=(), description="Layers and weights that are not adapted, and why.")
    memory: MemoryNeed | None = Field(default=None, description="Null if the memory cannot be estimated.")
    targets: dict[str, Target] = Field(
        default={}, description="What the other choices of target modules admit, where they are searched."
    )
    reference: str | None = Field(default=None, description="The choice on which the budget was counted.")
    groups: dict[str, tuple[Pair, ...]] = Field(
        default={}, description="The pairs of each group of layers, where each has a structure of its own."
    )

    def at(self, params: Mapping[str, Any]) -> Plan:
        """The plan for a trial's target modules."""
        target = self.targets.get(params.get("target_modules", self.reference) or "")
        return self if target is None else self.model_copy(update=dict(target))

    def ranked(self, params: Mapping[str, Any]) -> Structure | None:
        """The structure of all layers as rankings have it; ``None`` for several, or on other target modules."""
        if params.get("target_modules", self.reference) != self.reference:
            return None
        return uniform(params)

    @property
    def variants(self) -> list[Plan]:
        """The plan for each choice of target modules; the only one if they are not searched."""
        return [self, *(self.model_copy(update=dict(target)) for target in self.targets.values())]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Every (r1, r2) that some choice of target modules admits, in the order of ``Pair.order``."""
        found = {p.order: (p.r1, p.r2) for plan in self.variants for p in plan.structures}
        return [found[order] for order in sorted(found)]

    def pair(self, r1: int, r2: int) -> Pair | None:
        """The admitted pair with these sizes, if there is one."""
        return next((s for s in self.structures if (s.r1, s.r2) == (r1, r2)), None)
