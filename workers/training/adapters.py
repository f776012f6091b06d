"""Build a PEFT configuration from a trial's method and parameters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from peft import LoraConfig, TaskType
from peft.config import PeftConfig

import cdka
from service.schemas.specs import AdapterSpec


def adapter_config(
    method: str,
    params: dict[str, Any],
    adapter: AdapterSpec,
    task_type: TaskType | None,
    heads: Collection[str] = (),
) -> PeftConfig:
    """The adapter of a trial.

    ``cdka`` has (r1, r2, r); ``krona`` is ``cdka`` with r = 1; ``lora`` scales by alpha/r, ``rslora`` by alpha/sqrt(r).

    Raises:
        ValueError: the method is unknown.
    """
    common: dict[str, Any] = {"target_modules": adapter.target_modules, "task_type": task_type}
    if heads:
        common["modules_to_save"] = sorted(heads)
    if method in ("cdka", "krona"):
        return cdka.CdkaConfig(
            r1=params["r1"],
            r2=params["r2"],
            r=params["r"],
            alpha=params["alpha"],
            dropout=adapter.dropout,
            **common,
        )
    if method in ("lora", "rslora"):
        return LoraConfig(
            r=params["r"],
            lora_alpha=params["alpha"],
            lora_dropout=adapter.dropout,
            use_rslora=method == "rslora",
            **common,
        )
    raise ValueError(f"unknown method {method!r}; available: cdka, krona, lora, rslora")
