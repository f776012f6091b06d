"""Least squares with standard errors that hold where noise differs between configurations."""

from __future__ import annotations

import numpy as np

# Trials beyond the number of terms without which nothing is said.
FEWEST_SPARE = 4


def determines(design: np.ndarray) -> bool:
    """Whether there are enough observations, in enough different places, for every term."""
    count, terms = design.shape
    return bool(count >= terms + FEWEST_SPARE and np.linalg.matrix_rank(design) == terms)


def hc3(design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of least squares, and their standard errors by White's HC3 (MacKinnon, White 1985)."""
    inverse = np.linalg.inv(design.T @ design)
    slopes = inverse @ design.T @ y
    leverage = np.einsum("ij,jk,ik->i", design, inverse, design)
    scaled = (y - design @ slopes) / np.maximum(1e-9, 1 - leverage)
    covariance = inverse @ (design.T * scaled**2) @ design @ inverse
    return slopes, np.sqrt(np.maximum(0.0, np.diag(covariance)))
