"""Rank structures by the share of the measured gradient that they can hold."""

from __future__ import annotations

from collections.abc import Sequence

from ..counts import Configuration, ModuleShape
from ..errors import CdkaError
from ..gradients import Spectra
from .prediction import Prediction, best_first, predicted


def measured(
    shapes: Sequence[ModuleShape],
    max_parameters: int,
    candidates: Sequence[Configuration],
    *,
    spectra: Spectra | None = None,
) -> list[Prediction]:
    """Rank ``candidates`` by the share of squared gradient norm that r components can hold, best first.

    Derivation: a sum of r products ``B_i (x) A_i`` is, rearranged (Van Loan and Pitsianis 1993), a matrix of rank r.
    The largest share of ``|G|_F^2`` that such a matrix holds is that of the r leading squared singular values of
    ``R(G)`` (Eckart and Young 1936). The shares are those of full fine-tuning's gradients on a few batches, summed
    over layers.

    Ties go to fewer forward operations, then to smaller r1, then to smaller r2.

    Raises:
        CdkaError: there are no spectra, or they were not collected for a candidate.
    """
    if spectra is None:
        raise CdkaError("the measured predictor needs spectra=cdka.collect_spectra(model, batches, shapes, candidates)")
    return [
        predicted(
            shapes,
            c,
            value,
            f"its {c.r} leading component{'s' * (c.r > 1)} of size ({c.r1}, {c.r2}) can hold {value:.1%} of the "
            "squared gradient norm of full fine-tuning",
        )
        for value, c in best_first(shapes, candidates, lambda c: spectra.share(*c.structure))
    ]
