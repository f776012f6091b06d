"""The pruners by name, with their options.

One evaluation is one unit of resource. All trials of a study share their training, so their evaluations line up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import optuna
from optuna.pruners import BasePruner
from pydantic import BaseModel, Field

from ..domain.ranges import STRICT
from ..domain.records import Observation
from ..domain.states import TrialState
from ..domain.study_spec import StudySpec
from .halving import Bracket, best_at, best_first, hyperband_bracket
from .policy import NoOptions, Verdict

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
    """Asynchronous successive halving: of ``reduction_factor`` trials that reach a rung, one continues.

    The others wait with a checkpoint and are continued once later results put them among the best. ``promotion: false``
    stops them for good.
    """

    model_config = STRICT
    min_resource: Resource = 1
    reduction_factor: Factor = 3
    min_early_stopping_rate: Annotated[int, Field(ge=0, le=20)] = 0
    promotion: bool = True


class HyperbandOptions(BaseModel):
    """Several brackets of successive halving; ``max_resource`` is the evaluations of a full trial (default: epochs)."""

    model_config = STRICT
    min_resource: Resource = 1
    max_resource: Resource | None = None
    reduction_factor: Factor = 3
    promotion: bool = True


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


# Takes options, the evaluations of a full trial, the study's seed and a trial's number.
Rungs = Callable[[Any, int, int, int], Bracket]


@dataclass(frozen=True, slots=True)
class PrunerKind:
    """A pruner as the catalog lists it: one of Optuna's (``make``), or successive halving by its ``rungs``."""

    name: str
    summary: str
    options: type[BaseModel]
    make: Callable[[Any], BasePruner] | None = None
    rungs: Rungs | None = None


def _asha(options: AshaOptions, evaluations: int, seed: int, number: int) -> Bracket:
    first = options.min_resource * options.reduction_factor**options.min_early_stopping_rate
    return Bracket(first, options.reduction_factor)


def _hyperband(options: HyperbandOptions, evaluations: int, seed: int, number: int) -> Bracket:
    longest = max(options.max_resource or evaluations, options.min_resource)
    return hyperband_bracket(options.min_resource, longest, options.reduction_factor, seed, number)


def _median(options: MedianOptions) -> BasePruner:
    return optuna.pruners.MedianPruner(**options.model_dump())


def _percentile(options: PercentileOptions) -> BasePruner:
    return optuna.pruners.PercentilePruner(**options.model_dump())


def _patient(options: PatientOptions) -> BasePruner:
    return optuna.pruners.PatientPruner(None, **options.model_dump())


def _wilcoxon(options: WilcoxonOptions) -> BasePruner:
    return optuna.pruners.WilcoxonPruner(**options.model_dump())


PRUNERS: dict[str, PrunerKind] = {
    kind.name: kind
    for kind in (
        PrunerKind("asha", "asynchronous successive halving; the default", AshaOptions, rungs=_asha),
        PrunerKind("hyperband", "several brackets of asha", HyperbandOptions, rungs=_hyperband),
        PrunerKind("median", "stops trials worse than the median", MedianOptions, _median),
        PrunerKind("percentile", "stops trials worse than a percentile", PercentileOptions, _percentile),
        PrunerKind("patient", "stops trials that no longer improve", PatientOptions, _patient),
        PrunerKind("wilcoxon", "stops trials that a test finds worse than the best", WilcoxonOptions, _wilcoxon),
        PrunerKind("none", "every trial runs to its end", NoOptions),
    )
}


@dataclass(frozen=True, slots=True)
class Halving:
    """The successive halving of a study."""

    kind: PrunerKind
    options: Any
    spec: StudySpec

    @classmethod
    def of(cls, spec: StudySpec) -> Halving | None:
        """The successive halving that a study asks for; ``None`` if its pruner is another."""
        kind = PRUNERS[spec.search.pruner]
        return None if kind.rungs is None else cls(kind, kind.options.model_validate(spec.search.pruner_options), spec)

    def bracket(self, number: int) -> Bracket:
        """The rungs of a trial."""
        assert self.kind.rungs is not None
        return self.kind.rungs(self.options, self.spec.settled.training.epochs, self.spec.search.seed, number)

    def judge(self, trials: Sequence[Observation], number: int, evaluation: int) -> Verdict:
        """Whether a trial goes on after an evaluation.

        A trial that is stopped for good goes on if it is the best at its rung, however few there are.
        """
        bracket = self.bracket(number)
        if not bracket.is_rung(evaluation):
            return Verdict.CONTINUE
        if self.options.promotion and self.spec.search.trials <= self.spec.search.finished:
            return Verdict.CONTINUE
        least = 0 if self.options.promotion else 1
        mine = [t for t in trials if self.bracket(t.number) == bracket]
        if number in best_at(mine, evaluation, bracket.factor, self.spec.pruning_direction, least):
            return Verdict.CONTINUE
        return Verdict.WAIT if self.options.promotion else Verdict.STOP

    def promotions(self, trials: Sequence[Observation]) -> list[int]:
        """The waiting trials that are to be continued, best first."""
        # Each rung is ranked once, however many trials wait there.
        at_rung: dict[tuple[Bracket, int], list[Observation]] = {}
        found: list[Observation] = []
        for held in (t for t in trials if t.state is TrialState.WAITING):
            bracket = self.bracket(held.number)
            rung = bracket.last_rung(len(held.curve))
            if rung is None:
                found.append(held)
            else:
                at_rung.setdefault((bracket, rung), []).append(held)
        for (bracket, rung), waiting in at_rung.items():
            mine = [t for t in trials if self.bracket(t.number) == bracket]
            best = best_at(mine, rung, bracket.factor, self.spec.pruning_direction)
            found += [t for t in waiting if t.number in best]
        return best_first(found, self.spec.pruning_direction)

    def last_promotions(self, trials: Sequence[Observation]) -> list[int]:
        """The waiting trials that are to be continued although nothing else is left to run.

        Beside those that the rule promotes, as many as are missing from ``search.finished``.
        """
        promoted = self.promotions(trials)
        completed = sum(t.state is TrialState.COMPLETED for t in trials)
        held = best_first([t for t in trials if t.state is TrialState.WAITING], self.spec.pruning_direction)
        missing = max(0, self.spec.search.finished - completed - len(promoted))
        return promoted + [number for number in held if number not in promoted][:missing]
