"""The pruners by name, with their options and the rung marks that they need to decide from the history alone.

One evaluation is one unit of resource. All trials of a study share their training, so their evaluations line up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import optuna
from optuna.pruners import BasePruner
from pydantic import BaseModel, Field

from ..domain.search_space import STRICT
from .policy import NoOptions

Count = Annotated[int, Field(ge=0, le=100_000)]
Resource = Annotated[int, Field(ge=1, le=1_000_000)]
Factor = Annotated[int, Field(ge=2, le=100)]


class MedianOptions(BaseModel):
    """Stops a trial that is worse than the median of the others at the same evaluation."""

    model_config = STRICT
    n_startup_trials: Count = 5
    n_warmup_steps: Count = 0
    n_min_trials: Resource = 1


class PercentileOptions(MedianOptions):
    """Keeps the best ``percentile`` per cent of trials at the same evaluation."""

    percentile: Annotated[float, Field(ge=0, le=100)] = 25.0


class AshaOptions(BaseModel):
    """Asynchronous successive halving: of ``reduction_factor`` trials that reach a rung, one continues."""

    model_config = STRICT
    min_resource: Resource = 1
    reduction_factor: Factor = 3
    min_early_stopping_rate: Annotated[int, Field(ge=0, le=20)] = 0


class HyperbandOptions(BaseModel):
    """Several brackets of successive halving; ``max_resource`` is the evaluations of a full trial (default: epochs)."""

    model_config = STRICT
    min_resource: Resource = 1
    max_resource: Resource | None = None
    reduction_factor: Factor = 3


class PatientOptions(BaseModel):
    """Stops a trial that has not improved by ``min_delta`` over ``patience`` evaluations."""

    model_config = STRICT
    patience: Count = 2
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class WilcoxonOptions(BaseModel):
    """Stops a trial that a signed-rank test over evaluations finds worse than the best one."""

    model_config = STRICT
    p_threshold: Annotated[float, Field(ge=0, le=1)] = 0.1
    n_startup_steps: Count = 2


# Takes options, pruner, study and trial; returns the trial's rungs: (evaluation of rung 0, factor).
Rungs = Callable[[Any, BasePruner, optuna.Study, optuna.trial.FrozenTrial], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class PrunerKind:
    """A pruner as the catalog lists it. ``rungs`` gives the rungs of a trial, for pruners that leave rung marks."""

    name: str
    summary: str
    options: type[BaseModel]
    make: Callable[[Any, int], BasePruner] | None
    rungs: Rungs | None = None


def _asha(options: AshaOptions, evaluations: int) -> BasePruner:
    return optuna.pruners.SuccessiveHalvingPruner(**options.model_dump(), bootstrap_count=0)


def _asha_rungs(
    options: AshaOptions, pruner: BasePruner, study: optuna.Study, trial: optuna.trial.FrozenTrial
) -> tuple[int, int]:
    return options.min_resource * options.reduction_factor**options.min_early_stopping_rate, options.reduction_factor


def _hyperband(options: HyperbandOptions, evaluations: int) -> BasePruner:
    longest = max(options.max_resource or evaluations, options.min_resource)
    return optuna.pruners.HyperbandPruner(
        min_resource=options.min_resource, max_resource=longest, reduction_factor=options.reduction_factor
    )


def _hyperband_rungs(
    options: HyperbandOptions, pruner: BasePruner, study: optuna.Study, trial: optuna.trial.FrozenTrial
) -> tuple[int, int]:
    assert isinstance(pruner, optuna.pruners.HyperbandPruner)
    if not pruner._pruners:
        pruner._try_initialization(study)
    bracket = pruner._get_bracket_id(study, trial)
    return options.min_resource * options.reduction_factor**bracket, options.reduction_factor


def _median(options: MedianOptions, evaluations: int) -> BasePruner:
    return optuna.pruners.MedianPruner(**options.model_dump())


def _percentile(options: PercentileOptions, evaluations: int) -> BasePruner:
    return optuna.pruners.PercentilePruner(**options.model_dump())


def _patient(options: PatientOptions, evaluations: int) -> BasePruner:
    return optuna.pruners.PatientPruner(None, **options.model_dump())


def _wilcoxon(options: WilcoxonOptions, evaluations: int) -> BasePruner:
    return optuna.pruners.WilcoxonPruner(**options.model_dump())


PRUNERS: dict[str, PrunerKind] = {
    kind.name: kind
    for kind in (
        PrunerKind("asha", "asynchronous successive halving; the default", AshaOptions, _asha, _asha_rungs),
        PrunerKind("hyperband", "several brackets of asha", HyperbandOptions, _hyperband, _hyperband_rungs),
        PrunerKind("median", "stops trials worse than the median", MedianOptions, _median),
        PrunerKind("percentile", "stops trials worse than a percentile", PercentileOptions, _percentile),
        PrunerKind("patient", "stops trials that no longer improve", PatientOptions, _patient),
        PrunerKind("wilcoxon", "stops trials that a test finds worse than the best", WilcoxonOptions, _wilcoxon),
        PrunerKind("none", "every trial runs to its end", NoOptions, None),
    )
}


def rung_marks(curve: Sequence[float], first: int, factor: int, before: int | None = None) -> dict[str, Any]:
    """The rung marks that successive halving left on a trial, replayed from its evaluations.

    Optuna's pruner writes ``completed_rung_k`` on a trial when it decides on it. We keep no such state: a trial
    that reached evaluation ``first * factor^k`` completed rung k with the value it had there.

    Args:
        curve: a value per evaluation; the first is evaluation 1.
        first: the evaluation of rung 0.
        factor: the ratio of a rung to the one before.
        before: leave out this evaluation and later ones (the decision on it has yet to be made).
    """
    last = len(curve) if before is None else min(len(curve), before - 1)
    marks: dict[str, Any] = {}
    rung, place = 0, first
    while place <= last:
        marks[f"completed_rung_{rung}"] = curve[place - 1]
        rung, place = rung + 1, place * factor
    return marks
