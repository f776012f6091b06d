"""Estimate a trial's memory from shapes alone, before anything runs, and reject studies that do not fit."""

from __future__ import annotations

import json
import logging
import math
from functools import lru_cache
from typing import Any

import cdka

from ..domain.plan import MemoryNeed, Plan
from ..domain.study_spec import StudySpec
from ..domain.training_spec import ResourcesSpec
from ..errors import Fault

_log = logging.getLogger(__name__)
GIB = 2**30
# What an estimate leaves out: fragmentation and work space as a share, a device's context and libraries as a constant.
HEADROOM = 1.1
CONTEXT_GIB = 0.75
# Shares of a GPU are rounded up to these steps, so that they pack.
SHARES = 20


def admit(spec: StudySpec, plan: Plan, config: Any) -> tuple[StudySpec, Plan, list[Fault]]:
    """Estimate a trial's memory, reject it if it cannot fit, and compute the share of a GPU for ``gpus: fit``.

    Returns the study with its share and the plan with its estimate. A model that cannot be estimated is rejected only
    if its share of a GPU depends on the estimate.
    """
    resources = spec.resources
    processes = resources.shape.processes
    if spec.training.batch_size % processes:
        near = [b for b in range(1, 2 * spec.training.batch_size) if b % processes == 0]
        right = min(near, key=lambda b: abs(b - spec.training.batch_size), default=processes)
        message = f"{processes} processes share a batch of {spec.training.batch_size} unevenly; {right} would do"
        return spec, plan, [Fault("#/training/batch_size", message)]
    need = _estimate(spec, plan, config)
    plan = plan.model_copy(update={"memory": need})
    if need is None:
        if resources.gpus == "fit":
            message = "this model's memory cannot be estimated; name the share of a GPU, such as 0.5"
            return spec, plan, [Fault("#/resources/gpus", message)]
        return spec, plan, []
    wanted = need.peak / GIB * HEADROOM + CONTEXT_GIB
    if resources.gpus == "fit":
        assert resources.gpu_memory_gib is not None, "the spec's own check"
        share = math.ceil(wanted / resources.gpu_memory_gib * SHARES) / SHARES
        if share > 1:
            return spec, plan, [_too_large("gpu_memory_gib", need, wanted, resources.gpu_memory_gib)]
        fitted = resources.model_copy(update={"gpus": share})
        return spec.model_copy(update={"resources": fitted}), plan, []
    return spec, plan, _faults(resources, need, wanted)


def _faults(resources: ResourcesSpec, need: MemoryNeed, wanted: float) -> list[Fault]:
    assert resources.gpus != "fit", "worked out before"
    if resources.gpus > 0 and resources.gpu_memory_gib is not None:
        there = resources.gpu_memory_gib * min(1.0, resources.gpus)
        return [_too_large("gpu_memory_gib", need, wanted, there)] if wanted > there else []
    if resources.gpus == 0 and resources.memory_gib is not None:
        there = resources.memory_gib / resources.shape.processes
        return [_too_large("memory_gib", need, wanted, there)] if wanted > there else []
    return []


def _too_large(field: str, need: MemoryNeed, wanted: float, there: float) -> Fault:
    parts = f"weights {_gib(need.weights)}, adapter and optimizer {_gib(need.training)}, "
    parts += f"activations {_gib(need.activations)}"
    return Fault(
        f"#/resources/{field}",
        f"a trial is estimated to need {wanted:.2f} GiB ({parts} and head-room) and would have {there:.2f}: lower "
        "training.batch_size (with gradient_accumulation) or max_length, or set gradient_checkpointing",
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _estimate(spec: StudySpec, plan: Plan, config: Any) -> MemoryNeed | None:
    kind, training = spec.task.architecture, spec.training
    if kind is None or config is None:
        return None
    # The structure with the most factor columns needs the most memory in a step.
    widest = max(plan.structures, key=lambda s: (s.r1 * s.r2 * s.r_high, s.r1))
    targets = spec.adapter.target_modules
    return _estimated(
        config.to_json_string(),
        type(config),  # type: ignore[arg-type]  # classes are hashable
        kind,
        cdka.Configuration(widest.r1, widest.r2, widest.r_high, widest.unit_parameters * widest.r_high),
        targets if isinstance(targets, str) else tuple(targets),
        training.batch_size // spec.resources.shape.processes,
        training.max_length,
        training.precision,
        training.quantization,
        training.optimizer,
        training.gradient_checkpointing,
    )


@lru_cache(maxsize=256)
def _estimated(
    config: str,
    family: type[Any],
    kind: str,
    configuration: cdka.Configuration,
    targets: str | tuple[str, ...],
    batch_size: int,
    length: int,
    precision: str,
    quantization: str,
    optimizer: str,
    gradient_checkpointing: bool,
) -> MemoryNeed | None:
    try:
        found = cdka.estimate_memory(
            family.from_dict(json.loads(config)),
            kind,
            configuration,
            target_modules=targets if isinstance(targets, str) else list(targets),
            batch_size=batch_size,
            length=length,
            precision=precision,
            quantization=quantization,
            optimizer=optimizer,
            gradient_checkpointing=gradient_checkpointing,
        )
    except Exception as error:  # a model's forward pass may raise anything; a failed estimate must not block a study
        _log.info("the memory of %s cannot be estimated: %s", family.__name__, str(error).split("\n", 1)[0])
        return None
    return MemoryNeed(weights=found.weights, training=found.training, activations=found.activations)
