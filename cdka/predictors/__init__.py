"""Predicts before any trial which component structure should win."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..counts import Configuration, ModuleShape, feasible
from ..errors import CdkaError
from .alignment import alignment
from .guideline import guideline
from .measured import measured
from .prediction import Prediction

Predictor = Callable[..., list[Prediction]]
PREDICTORS: dict[str, Predictor] = {"guideline": guideline, "alignment": alignment, "measured": measured}
# Those that need nothing but shapes and a budget.
FROM_BUDGET = ("guideline", "alignment")


def predict(
    shapes: Sequence[ModuleShape],
    max_parameters: int,
    predictor: str = "guideline",
    *,
    candidates: Sequence[Configuration] | None = None,
    **constants: Any,
) -> list[Prediction]:
    """Rank the configurations that a budget admits, best first.

    Args:
        shapes: the adapted layers.
        max_parameters: the budget, in adapter parameters.
        predictor: ``"guideline"`` (the paper's rule), ``"alignment"`` (closed form) or ``"measured"`` (from gradients,
            passed as ``spectra``; see :func:`cdka.collect_spectra`).
        candidates: the configurations to rank; ``None`` takes all that :func:`cdka.feasible` finds by default.
        constants: the named constants of the predictor, see its docstring.

    Raises:
        BudgetError: the budget is below the smallest feasible cost, which the message names.
        CdkaError: the predictor's name is unknown.
    """
    if predictor not in PREDICTORS:
        raise CdkaError(f"unknown predictor {predictor!r}; available: {', '.join(PREDICTORS)}")
    ranked = feasible(shapes, max_parameters) if candidates is None else list(candidates)
    return PREDICTORS[predictor](shapes, max_parameters, ranked, **constants)


__all__ = ["FROM_BUDGET", "PREDICTORS", "Prediction", "alignment", "guideline", "measured", "predict"]
