"""A Gaussian process over configurations and the length of their training.

A value after ``e`` of ``E`` evaluations is modelled as

    f(x, s) = a(s) + g(x) + h(x, s) + noise,    s = log(e) / log(E),

with independent Gaussian processes ``a`` (how values rise during training), ``g`` (what a configuration is worth at any
time) and ``h`` (what of it changes during training). ``g`` and ``h`` have Matern 5/2 kernels with a length for each
parameter, ``h`` and ``a`` a squared exponential one in ``s``. So a trial that was stopped early informs the prediction
for full trainings, as in Klein et al., "Model-based Asynchronous Hyperparameter and Neural Architecture Search" (arXiv
2003.10865). Lengths, variances and noise maximise the posterior under broad log-normal priors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg, optimize, stats

from .cube import Cube

Array = np.ndarray
# Priors of the logarithms: (mean, standard deviation). Values are scaled to variance 1 and parameters to [0, 1].
_LENGTH = (math.log(0.5), 0.8)
_VARIANCES = {"a": (math.log(0.5), 1.0), "g": (math.log(0.7), 0.7), "h": (math.log(0.1), 1.0)}
_SPAN = (math.log(0.7), 0.5)
_NOISE = (math.log(0.03), 1.2)
_JITTER = 1e-6
_ROOT5 = math.sqrt(5.0)


@dataclass(frozen=True, slots=True)
class Data:
    """Evaluations: points ``x`` (n, d) in the unit cube, their ``stage`` s (n,) in [0, 1], and values ``y`` (n,).

    Larger values are better.
    """

    x: Array
    stage: Array
    y: Array


def warped(values: Array) -> Array:
    """Values with mean 0 and variance 1 whose lower half is compressed to the spread of the upper half.

    A configuration that fails to learn says that its region is bad; how bad must not bend the surface elsewhere. Of the
    values below the median, only the ranks are kept: they are laid out as the lower half of a normal distribution with
    the standard deviation of the upper half (Song et al., "The Vizier Gaussian Process Bandit Algorithm", arXiv
    2408.11527, section 4).
    """
    median = float(np.median(values))
    upper = values[values >= median] - median
    spread = float(np.sqrt(np.mean(upper**2))) if np.any(upper > 0) else 0.0
    if spread == 0.0:
        spread = float(np.std(values))
    if spread == 0.0:
        return np.zeros_like(values)
    ranks = stats.rankdata(values)
    half = spread * stats.norm.ppf((ranks - 0.5) / len(values))
    found = np.where(values < median, np.maximum(values - median, half), values - median)
    return np.asarray((found - found.mean()) / max(float(found.std()), 1e-12))


class Surrogate:
    """The process, fitted to data."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._dimensions = data.x.shape[1]
        self._squares = (data.x[:, None, :] - data.x[None, :, :]) ** 2
        self._stages = (data.stage[:, None] - data.stage[None, :]) ** 2
        self._has_stages = bool(np.ptp(data.stage) > 0)
        self._hyper = self._fitted()
        kernel, _ = self._kernel(self._hyper, self._squares, self._stages)
        noisy = kernel + (math.exp(self._hyper[-1]) + _JITTER) * np.eye(len(data.y))
        self._factor = linalg.cholesky(noisy, lower=True)
        self._weights = linalg.cho_solve((self._factor, True), data.y)

    # The logarithms of: d lengths, variances of g, h and a, the span of stages, noise.
    def _priors(self) -> Array:
        order = [*[_LENGTH] * self._dimensions, _VARIANCES["g"], _VARIANCES["h"], _VARIANCES["a"], _SPAN, _NOISE]
        return np.array(order)

    def _kernel(self, hyper: Array, squares: Array, stages: Array) -> tuple[Array, dict[str, Array]]:
        d = self._dimensions
        lengths, (g, h, a, span) = np.exp(hyper[:d]), np.exp(hyper[d : d + 4])
        r = np.sqrt(np.maximum(squares @ (1 / lengths**2), 1e-18))
        decay = np.exp(-_ROOT5 * r)
        matern = (1 + _ROOT5 * r + 5 / 3 * r**2) * decay
        near = np.exp(-0.5 * stages / span**2)
        return g * matern + h * matern * near + a * near, {
            "matern": matern,
            "near": near,
            "slope": 5 / 3 * (1 + _ROOT5 * r) * decay,
        }

    def _fitted(self) -> Array:
        priors = self._priors()
        bounds = [(m - 3 * s, m + 3 * s) for m, s in priors]
        found = optimize.minimize(
            self._loss, priors[:, 0], jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 60}
        )
        return np.asarray(found.x)

    def _loss(self, hyper: Array) -> tuple[float, Array]:
        """The negative log posterior and its gradient."""
        data, d = self._data, self._dimensions
        kernel, parts = self._kernel(hyper, self._squares, self._stages)
        noise = math.exp(hyper[-1])
        try:
            factor = linalg.cholesky(kernel + (noise + _JITTER) * np.eye(len(data.y)), lower=True)
        except linalg.LinAlgError:
            return 1e25, np.zeros_like(hyper)
        weights = linalg.cho_solve((factor, True), data.y)
        inverse = linalg.cho_solve((factor, True), np.eye(len(data.y)))
        outer = 0.5 * (inverse - np.outer(weights, weights))
        lengths, (g, h, a, span) = np.exp(hyper[:d]), np.exp(hyper[d : d + 4])
        near, matern = parts["near"], parts["matern"]
        common = outer * (g + h * near) * parts["slope"]
        gradient = np.empty_like(hyper)
        gradient[:d] = np.einsum("ij,ijk->k", common, self._squares) / lengths**2
        gradient[d] = np.sum(outer * g * matern)
        gradient[d + 1] = np.sum(outer * h * matern * near)
        gradient[d + 2] = np.sum(outer * a * near)
        gradient[d + 3] = np.sum(outer * (h * matern + a) * near * self._stages) / span**2
        gradient[-1] = noise * np.trace(outer)
        loss = 0.5 * float(data.y @ weights) + float(np.log(np.diag(factor)).sum())
        off = hyper - self._priors()[:, 0]
        scale = self._priors()[:, 1] ** 2
        return loss + 0.5 * float(np.sum(off**2 / scale)), gradient + off / scale

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the noiseless value after a full training; x has shape (m, d)."""
        data = self._data
        squares = (x[:, None, :] - data.x[None, :, :]) ** 2
        stages = np.broadcast_to((1.0 - data.stage) ** 2, squares.shape[:2])
        cross, _ = self._kernel(self._hyper, squares, stages)
        mean = cross @ self._weights
        half = linalg.solve_triangular(self._factor, cross.T, lower=True)
        d = self._dimensions
        prior = float(np.exp(self._hyper[d : d + 3]).sum())
        return mean, np.sqrt(np.maximum(prior - (half**2).sum(axis=0), 1e-12))

    def believed(self, x: Array) -> Surrogate:
        """The process with full trainings at x (k, d) that turned out as predicted, under the same hyperparameters."""
        mean, _ = self.predict(x)
        copy = object.__new__(Surrogate)
        stage = np.append(self._data.stage, np.ones(len(x)))
        data = Data(np.vstack([self._data.x, x]), stage, np.append(self._data.y, mean))
        copy._data, copy._dimensions, copy._hyper = data, self._dimensions, self._hyper
        copy._has_stages = True
        copy._squares = (data.x[:, None, :] - data.x[None, :, :]) ** 2
        copy._stages = (data.stage[:, None] - data.stage[None, :]) ** 2
        kernel, _ = copy._kernel(copy._hyper, copy._squares, copy._stages)
        copy._factor = linalg.cholesky(kernel + (math.exp(copy._hyper[-1]) + _JITTER) * np.eye(len(data.y)), lower=True)
        copy._weights = linalg.cho_solve((copy._factor, True), data.y)
        return copy


def fitted(cube: Cube, seen: Sequence[tuple[Mapping[str, Any], int, float]]) -> Surrogate:
    """The process fitted to points with the number and the value of their last evaluation; larger is better.

    The longest of these trainings counts as a full one.
    """
    longest = max(step for _, step, _ in seen)
    stage = [math.log(step) / math.log(longest) if longest > 1 else 1.0 for _, step, _ in seen]
    x = np.array([cube.features(point) for point, _, _ in seen])
    return Surrogate(Data(x, np.array(stage), warped(np.array([value for _, _, value in seen]))))
