"""The samplers by name."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler


def _tpe(seed: int) -> BaseSampler:
    # Few start-up trials: studies of adapters are short, and 10 (Optuna's default) would be half of one.
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=5, multivariate=True, constant_liar=True)


def _random(seed: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {"tpe": _tpe, "random": _random}
