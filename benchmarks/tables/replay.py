"""Replay recorded trainings: learning curves at any learning rate of the recorded range.

The recorded grid has six learning rates, of which each (r1, r2, alpha) has three. Between them, a Gaussian process with
a Matern kernel (nu = 3/2) gives the logit of each epoch's mean validation and test accuracy. Its inputs are log2 of r1,
r2 and alpha, log10 of the learning rate, and log10 of the product of scale and learning rate
(``lambda * learning_rate``), on which accuracy depends most. To the mean comes what one recorded training of the
nearest configuration (in the kernel's lengths and in the logit of its accuracy, in halves) was off the mean of its
seeds, in all epochs and both splits together, times sqrt 2 because the mean of two seeds hides half of the variance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

FOLDER = Path(__file__).parent
Setting = tuple[int, int, float, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """One training: accuracy on validation and test, and the seconds of each epoch."""

    validation: tuple[float, ...]
    test: tuple[float, ...]
    seconds: tuple[float, ...]


def setting(params: Mapping[str, Any]) -> Setting:
    """The configuration of a trial's parameters; its r fills the budget."""
    return int(params["r1"]), int(params["r2"]), float(params["alpha"]), float(params["learning_rate"])


def pack(name: str) -> Path:
    """Write the recorded lines as NAME.parquet, one row an epoch."""
    rows = []
    for text in (FOLDER / f"{name}.jsonl").read_text().splitlines():
        line = json.loads(text)
        r1, r2, alpha, rate = line["point"]
        rows += [
            {
                "r1": r1,
                "r2": r2,
                "r": line["r"],
                "alpha": alpha,
                "learning_rate": rate,
                "seed": line["seed"],
                "epoch": k + 1,
                "diverged": line["diverged"],
                **epoch,
            }
            for k, epoch in enumerate(line["epochs"])
        ]
    file = FOLDER / f"{name}.parquet"
    pd.DataFrame(rows).to_parquet(file, index=False, compression="zstd")
    return file


class Table:
    """The recorded trainings of one task."""

    def __init__(self, name: str) -> None:
        self.name = name
        data = pd.read_parquet(FOLDER / f"{name}.parquet")
        self.trainings = data.groupby(["r1", "r2", "alpha", "learning_rate", "seed"]).ngroups
        self.hours = data.groupby(["r1", "r2", "alpha", "learning_rate", "seed"])["seconds"].max().sum() / 3600
        self.epochs = int(data["epoch"].max())
        self.fills = {(int(a), int(b)): int(r) for a, b, r in data[["r1", "r2", "r"]].itertuples(index=False)}
        self._curves: dict[Setting, list[Curve]] = {}
        for key, rows in data.sort_values("epoch").groupby(["r1", "r2", "alpha", "learning_rate", "seed"]):
            if len(rows) == self.epochs:
                ends = rows["seconds"].to_numpy()
                curve = Curve(
                    tuple(rows["validation"]), tuple(rows["test"]), tuple(np.diff(ends, prepend=0.0).tolist())
                )
                self._curves.setdefault(key[:4], []).append(curve)  # type: ignore[arg-type]
        self.settings = sorted(self._curves)
        self._repeated = [s for s in self.settings if len(self._curves[s]) > 1]

    def _features(self, settings: Sequence[Setting]) -> np.ndarray:
        rows = []
        for r1, r2, alpha, rate in settings:
            scale = alpha / math.sqrt(self.fills[r1, r2] * r2)
            rows.append([math.log2(r1), math.log2(r2), math.log2(alpha), math.log10(rate), math.log10(scale * rate)])
        return np.array(rows)

    @cached_property
    def _means(self) -> np.ndarray:
        return np.array([np.mean([c.validation + c.test for c in self._curves[s]], axis=0) for s in self.settings])

    @cached_property
    def _surface(self) -> GaussianProcessRegressor:
        smooth = Matern([2.0, 2.0, 2.0, 1.0, 0.5], [(1, 30), (1, 30), (0.5, 30), (0.2, 10), (0.2, 10)], nu=1.5)
        kernel = ConstantKernel(1.0) * smooth + WhiteKernel(0.01, (1e-4, 0.5))
        surface = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        return surface.fit(self._features(self.settings), logit(np.clip(self._means, 0.02, 0.98)))

    @cached_property
    def _repeated_features(self) -> np.ndarray:
        return self._features(self._repeated)

    @cached_property
    def _repeated_levels(self) -> np.ndarray:
        means = [np.mean([c.test[-1] for c in self._curves[s]]) for s in self._repeated]
        return np.asarray(logit(np.clip(means, 0.02, 0.98)))

    @cached_property
    def _highest(self) -> float:
        return max(max(c.validation + c.test) for curves in self._curves.values() for c in curves)

    @cached_property
    def _length_scales(self) -> np.ndarray:
        found = self._surface.kernel_.get_params()
        return np.asarray(found["k1__k2__length_scale"])

    def leave_one_out(self) -> tuple[float, float]:
        """Root mean squared error of the surface at a configuration left out, and of the mean of its recorded seeds.

        Of the last epoch's test accuracy. The second is the part that no surface could avoid.
        """
        surface = self._surface
        inverse = np.linalg.inv(surface.kernel_(surface.X_train_))
        left_out = surface.y_train_ - inverse @ surface.y_train_ / np.diag(inverse)[:, None]
        predicted = expit((left_out * surface._y_train_std + surface._y_train_mean)[:, -1])
        errors = predicted - self._means[:, -1]
        several = [[c.test[-1] for c in self._curves[s]] for s in self.settings if len(self._curves[s]) > 1]
        noise = np.mean([np.var(values, ddof=1) / len(values) for values in several])
        return float(np.sqrt(np.mean(errors**2))), float(np.sqrt(noise))

    def mean(self, wanted: Setting) -> np.ndarray:
        """Mean validation and then test accuracy of every epoch."""
        return self._known(wanted)

    def truth(self, wanted: Setting) -> float:
        """Mean test accuracy after the last epoch."""
        return float(self._known(wanted)[-1])

    @cached_property
    def _cache(self) -> dict[Setting, np.ndarray]:
        return {}

    def _known(self, wanted: Setting) -> np.ndarray:
        if wanted not in self._cache:
            surface = self._surface
            # As predict does, without its checks of the input.
            near = surface.kernel_(self._features([wanted]), surface.X_train_) @ surface.alpha_
            self._cache[wanted] = expit((near * surface._y_train_std + surface._y_train_mean)[0])
        return self._cache[wanted]

    @cached_property
    def best(self) -> float:
        """The best mean test accuracy of the space, on a fine grid of learning rates."""
        rates = np.geomspace(*self.rates, 60)
        groups = sorted({s[:3] for s in self.settings})
        return max(self.truth((*group, float(rate))) for group in groups for rate in rates)

    def predicted(self) -> list[tuple[int, int]]:
        """The structures that guideline and alignment choose on MiniLM's linear layers at the table's budget."""
        return list(dict.fromkeys(order[0] for order in rankings().values()))

    @property
    def rates(self) -> tuple[float, float]:
        """The lowest and the highest recorded learning rate."""
        return min(s[3] for s in self.settings), max(s[3] for s in self.settings)

    def draw(self, wanted: Setting, random: np.random.Generator) -> Curve:
        """One training of a configuration."""
        off_by = (self._repeated_features - self._features([wanted])) / self._length_scales
        levels = logit(np.clip(self.truth(wanted), 0.02, 0.98)) - self._repeated_levels
        curves = self._curves[self._repeated[int(np.argmin((off_by**2).sum(axis=1) + 4 * levels**2))]]
        drawn = curves[int(random.integers(len(curves)))]
        off = np.array(drawn.validation + drawn.test) - np.mean([c.validation + c.test for c in curves], axis=0)
        values = np.clip(self._known(wanted) + math.sqrt(2) * off, 0.0, self._highest)
        half = self.epochs
        return Curve(tuple(values[:half].tolist()), tuple(values[half:].tolist()), drawn.seconds)


@cache
def rankings() -> dict[str, list[tuple[int, int]]]:
    """The structures by guideline and alignment, best first, on MiniLM's linear layers at the tables' budget."""
    from cdka import ModuleShape, count_parameters, predict

    block = [(384, 384)] * 4 + [(384, 1536), (1536, 384)]
    shapes = [ModuleShape(f"layer{k}.{j}", *size) for k in range(6) for j, size in enumerate(block)]
    budget = count_parameters(shapes, 2, 8, 4)
    return {
        name: list(dict.fromkeys(p.configuration.structure[:2] for p in predict(shapes, budget, name)))
        for name in ("guideline", "alignment")
    }
