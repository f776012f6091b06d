"""The resources of a running trial, as studies ask for them and runners offer them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

GIB = 2**30


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """The resources of all processes of one trial.

    ``memory_gib`` is host memory. ``accelerator_type`` is a Ray name such as ``H100`` (empty: any). ``custom`` are
    resources named by the cluster's administrators. ``processes`` is how many processes share the trial's batches.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_gib: float = 0.0
    accelerator_type: str = ""
    custom: tuple[tuple[str, float], ...] = ()
    processes: int = 1

    def holds(self, needs: Shape) -> bool:
        """Whether a runner of this shape can run a trial that needs ``needs``."""
        mine = dict(self.custom)
        return (
            needs.cpus <= self.cpus
            and needs.gpus <= self.gpus
            and needs.memory_gib <= self.memory_gib
            and needs.accelerator_type in ("", self.accelerator_type)
            and all(amount <= mine.get(name, 0.0) for name, amount in needs.custom)
            and needs.processes == self.processes
        )

    def __str__(self) -> str:
        words = [f"{self.cpus:g} CPUs", f"{self.gpus:g} GPUs"]
        if self.accelerator_type:
            words.append(f"of type {self.accelerator_type}")
        if self.memory_gib:
            words.append(f"{self.memory_gib:g} GiB of memory")
        words += [f"{amount:g} {name}" for name, amount in self.custom]
        if self.processes > 1:
            words.append(f"in {self.processes} processes")
        return ", ".join(words)

    def as_dict(self) -> dict[str, Any]:
        """The shape as JSON data."""
        return {**asdict(self), "custom": dict(self.custom)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Shape:
        """The shape from what :meth:`as_dict` returned."""
        custom = tuple(sorted((values.get("custom") or {}).items()))
        return cls(**{**values, "custom": custom})
