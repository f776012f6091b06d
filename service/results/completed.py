"""The trials of a search that say something about structures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..domain.records import Observation, Study
from ..domain.states import TrialState
from ..domain.structure import SIZES, uniform
from ..search.coordinates import CDKA, method_of


def completed_of_cdka(study: Study, searched: Sequence[Observation]) -> list[Observation]:
    """The search trials of CDKA that ran to their end with a value."""
    metric = study.spec.objective.metric
    done = [t for t in searched if t.state is TrialState.COMPLETED and math.isfinite(t.metrics.get(metric, math.nan))]
    return [t for t in done if method_of(t.params) == CDKA]


def with_structure(trials: Sequence[Observation]) -> list[Observation]:
    """Those with one structure in all layers, as r1, r2 and r."""
    found = []
    for trial in trials:
        if "r1" in trial.params:
            found.append(trial)
        elif (structure := uniform(trial.params)) is not None:
            found.append(replace(trial, params={**trial.params, **dict(zip(SIZES, structure, strict=True))}))
    return found
