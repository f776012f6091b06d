"""The stop rules by name, and what each needs to find in a trial to decide from the history alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna

# One evaluation is one unit of resource: trials of a study share their training, so evaluations line up.
ASHA_MIN_RESOURCE = 1
ASHA_REDUCTION = 3


def _asha() -> optuna.pruners.BasePruner:
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=ASHA_MIN_RESOURCE, reduction_factor=ASHA_REDUCTION, bootstrap_count=0
    )


def _median() -> optuna.pruners.BasePruner:
    return optuna.pruners.MedianPruner(n_startup_trials=5)


PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner] | None] = {
    "asha": _asha,
    "median": _median,
    "none": None,
}


def rungs(curve: dict[int, float], before: int | None = None) -> dict[str, Any]:
    """The rung marks that successive halving left on a trial, replayed from its evaluations.

    Optuna's pruner writes ``completed_rung_k`` on a trial when it decides on it. We keep no such state: a trial
    that reached evaluation ``min_resource * reduction^k`` completed rung k with the value it had there.

    Args:
        curve: value by evaluation.
        before: leave out this evaluation and later ones (the decision on it has yet to be made).
    """
    marks: dict[str, Any] = {}
    rung = 0
    for step in sorted(curve):
        if before is not None and step >= before:
            break
        while step >= ASHA_MIN_RESOURCE * ASHA_REDUCTION**rung:
            marks[f"completed_rung_{rung}"] = curve[step]
            rung += 1
    return marks
