"""Optuna as its users would drive it, as a :class:`~benchmarks.searchers.Searcher`."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import TrialState as OptunaState

from .searchers import Make, Next, Searcher, Space

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Optuna:
    """Optuna's own sampler and pruner with ask and tell; structure and alpha are categories, as its docs write them."""

    def __init__(self, space: Space, sampler: optuna.samplers.BaseSampler, pruner: optuna.pruners.BasePruner) -> None:
        self.space = space
        self.study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        self.open: dict[int, optuna.Trial] = {}
        self.steps: dict[int, int] = {}

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """See :class:`Searcher`."""
        trial = self.study.ask()
        r1 = trial.suggest_categorical("r1", sorted({a for a, _ in self.space.structures}))
        r2 = trial.suggest_categorical("r2", sorted({b for _, b in self.space.structures}))
        params = {
            "r1": r1,
            "r2": r2,
            "r": self.space.structures[r1, r2],
            "alpha": trial.suggest_categorical("alpha", list(self.space.alphas)),
            "learning_rate": trial.suggest_float("learning_rate", *self.space.rates, log=True),
        }
        self.open[trial.number], self.steps[trial.number] = trial, 0
        return trial.number, params

    def tell(self, number: int, value: float, *, last: bool) -> Next:
        """See :class:`Searcher`."""
        trial = self.open[number]
        self.steps[number] += 1
        trial.report(value, self.steps[number])
        if last:
            self.study.tell(trial, value)
            return Next.STOP
        if trial.should_prune():
            self.study.tell(trial, state=OptunaState.PRUNED)
            return Next.STOP
        return Next.CONTINUE

    def shortlist(self, count: int) -> list[int]:
        """It has none."""
        raise NotImplementedError

    def chosen(self) -> int | None:
        """See :class:`Searcher`."""
        trials = [t for t in self.study.get_trials(deepcopy=False) if t.intermediate_values]
        if not trials:
            return None
        return max(
            trials,
            key=lambda t: (len(t.intermediate_values), t.intermediate_values[max(t.intermediate_values)], -t.number),
        ).number


def optuna_tpe(pruner: str) -> Make:
    """Optuna's TPE, with constant liar where several runners share it, and one of its own pruners."""

    def make(space: Space, seed: int, runners: int) -> Searcher:
        pruners = {
            "none": optuna.pruners.NopPruner(),
            "asha": optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
            "hyperband": optuna.pruners.HyperbandPruner(min_resource=1, max_resource=space.epochs, reduction_factor=3),
        }
        return Optuna(space, optuna.samplers.TPESampler(seed=seed, constant_liar=runners > 1), pruners[pruner])

    return make


def optuna_gp(space: Space, seed: int, runners: int) -> Searcher:
    """Optuna's Gaussian process without a pruner."""
    return Optuna(space, optuna.samplers.GPSampler(seed=seed), optuna.pruners.NopPruner())
