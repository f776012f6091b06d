"""Estimate a trial's memory from shapes alone, before anything runs, and reject studies that do not fit."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from threading import Lock

from cachetools import LRUCache, cached

import cdka

from ..domain.plan import MemoryNeed, Plan
from ..domain.search_space import Pair
from ..domain.shape import GIB
from ..domain.study_spec import StudySpec
from ..domain.training_spec import ResourcesSpec
from ..errors import Fault
from .base_models import MetaModel
from .structures import count

_log = logging.getLogger(__name__)
# What an estimate leaves out: fragmentation and work space as a share, a device's context and libraries as a constant.
HEADROOM = 1.1
CONTEXT_GIB = 0.75
# Shares of a GPU are rounded up to these steps, so that they pack.
SHARES = 20


def admit(spec: StudySpec, plan: Plan, model: MetaModel) -> tuple[StudySpec, Plan, list[Fault]]:
    """Estimate a trial's memory, reject it if it cannot fit, and compute the share of a GPU for ``gpus: fit``.

    Returns the study with its share and the plan with its estimate. A model that cannot be estimated is rejected only
    if its share of a GPU depends on the estimate.
    """
    resources = spec.resources
    processes = resources.shape.processes
    space = spec.search_space
    sizes = [spec.training.batch_size] if space.batch_size is None else space.values("batch_size") or []
    for size in sizes:
        if size % processes:
            right = max(processes, round(size / processes) * processes)
            place = "#/training/batch_size" if space.batch_size is None else "#/search_space/batch_size"
            message = f"{processes} processes share a batch of {size} unevenly; {right} would do"
            return spec, plan, [Fault(place, message)]
    optimizers = [spec.training.optimizer] if space.optimizer is None else space.values("optimizer") or []
    needs = [
        _estimate(spec.for_trial({"batch_size": max(sizes), "optimizer": optimizer}), one, model)
        for optimizer in optimizers
        for one in plan.variants
    ]
    known = [_with_full(n, spec, plan) for n in needs if n is not None]
    need = max(known, key=lambda n: n.peak) if len(known) == len(needs) else None
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


def _with_full(need: MemoryNeed, spec: StudySpec, plan: Plan) -> MemoryNeed:
    """The need where the adapted layers themselves are trained, too: a copy in 32 bits, gradients, moments of Adam."""
    asked = [*spec.search_space.methods(), *(spec.compare.baselines if spec.compare.first_seeds else [])]
    if "full" not in asked:
        return need
    layers = max(count(one, "full", {}) for one in plan.variants)
    return need.model_copy(update={"training": max(need.training, 16 * layers)})


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
        f"a trial is estimated to need {wanted:.2f} GiB ({parts} and headroom) but would get {there:.2f}: lower "
        "training.batch_size (with gradient_accumulation) or max_length, or set gradient_checkpointing",
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _estimate(spec: StudySpec, plan: Plan, model: MetaModel) -> MemoryNeed | None:
    layers = tuple(shape.name for shape in plan.shapes)
    if not plan.groups:
        return _of_structure(spec, model, _widest(plan.structures), layers)
    # One group at a time can have the whole budget; what that adds to the smallest structure on all layers is counted.
    one = Pair(r1=1, r2=1, r_low=1, r_high=1, unit_parameters=count(plan, "lora", {"r": 1}))
    plain = _of_structure(spec, model, one, layers)
    wide, small = [], []
    for name, pairs in plan.groups.items():
        mine = tuple(shape.name for shape in plan.shapes if shape.group == name)
        wide.append(_of_structure(spec, model, _widest(pairs), mine))
        small.append(_of_structure(spec, model, one, mine))
    known = [(w, s) for w, s in zip(wide, small, strict=True) if w is not None and s is not None]
    if plain is None or len(known) < len(wide):
        return None
    more = max(w.activations - s.activations for w, s in known)
    training = max(plain.training, *(w.training for w, _ in known))
    return plain.model_copy(update={"training": training, "activations": plain.activations + max(0, more)})


def _widest(pairs: Sequence[Pair]) -> Pair:
    """The structure with the most factor columns, which needs the most memory in a step."""
    return max(pairs, key=lambda pair: (pair.r1 * pair.r2 * pair.r_high, pair.r1))


def _of_structure(spec: StudySpec, model: MetaModel, pair: Pair, layers: tuple[str, ...]) -> MemoryNeed | None:
    training = spec.training
    return _estimated(
        model,
        spec.task.architecture,
        cdka.Configuration(pair.r1, pair.r2, pair.r_high, pair.unit_parameters * pair.r_high),
        layers,
        cdka.TrainingStep(
            batch_size=training.batch_size // spec.resources.shape.processes,
            length=training.max_length,
            precision=training.precision,
            quantization=training.quantization,
            optimizer=training.optimizer,
            gradient_checkpointing=training.gradient_checkpointing,
        ),
    )


@cached(
    LRUCache(256),
    key=lambda model, *given: (type(model.config), model.config.to_json_string(), model.heads, *given),
    lock=Lock(),
)
def _estimated(
    model: MetaModel,
    kind: str,
    configuration: cdka.Configuration,
    targets: tuple[str, ...],
    step: cdka.TrainingStep,
) -> MemoryNeed | None:
    try:
        found = cdka.estimate_memory(
            model.config,
            kind,
            configuration,
            step,
            target_modules=list(targets),
            model=model.module,
            heads=model.heads,
        )
    except Exception as error:  # a model's forward pass may raise anything; a failed estimate must not block a study
        name = type(model.config).__name__
        _log.info("the memory of %s cannot be estimated: %s", name, str(error).split("\n", 1)[0])
        return None
    return MemoryNeed(weights=found.weights, training=found.training, activations=found.activations)
