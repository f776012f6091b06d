"""Syne Tune's schedulers, as a :class:`~benchmarks.searchers.Searcher`.

Its package wants other versions than ours, so it runs in an environment of its own:

    pip install syne-tune==0.16.0 autograd scikit-learn pyarrow
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice, loguniform
from syne_tune.optimizer import baselines

from .searchers import METRIC, Make, Next, Space

_NEXT = {"CONTINUE": Next.CONTINUE, "STOP": Next.STOP, "PAUSE": Next.WAIT}
_STARTED = datetime(2000, 1, 1)


class SyneTune:
    """One of Syne Tune's multi-fidelity schedulers, driven as its tuner does."""

    def __init__(self, space: Space, scheduler: Any) -> None:
        self.space, self.scheduler = space, scheduler
        self.trials: dict[int, Trial] = {}
        self.curves: dict[int, list[float]] = {}

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """See :class:`Searcher`."""
        found = self.scheduler.suggest()
        if found is None:
            return None
        if not found.spawn_new_trial_id:
            number = int(found.checkpoint_trial_id)
            return number, self._params(self.trials[number].config)
        number = len(self.trials)
        trial = Trial(number, found.config, _STARTED)
        self.trials[number], self.curves[number] = trial, []
        self.scheduler.on_trial_add(trial)
        return number, self._params(found.config)

    def _params(self, config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "r": self.space.structures[config["r1"], config["r2"]]}

    def tell(self, number: int, value: float, *, last: bool) -> Next:
        """See :class:`Searcher`."""
        self.curves[number].append(value)
        result = {METRIC: value, "epoch": len(self.curves[number])}
        decision = self.scheduler.on_trial_result(self.trials[number], result)
        if last:
            self.scheduler.on_trial_complete(self.trials[number], result)
            return Next.STOP
        return _NEXT[decision]

    def shortlist(self, count: int) -> list[int]:
        """It has none."""
        raise NotImplementedError

    def chosen(self) -> int | None:
        """The best last value of the longest trained, as for the other searchers."""
        seen = [(len(c), c[-1], -n) for n, c in self.curves.items() if c]
        return -max(seen)[2] if seen else None


def syne_tune(name: str) -> Make:
    """A baseline of Syne Tune by its name, with its defaults."""

    def make(space: Space, seed: int, runners: int) -> SyneTune:
        config = {
            "r1": choice(sorted({a for a, _ in space.structures})),
            "r2": choice(sorted({b for _, b in space.structures})),
            "alpha": choice(list(space.alphas)),
            "learning_rate": loguniform(*space.rates),
        }
        scheduler = getattr(baselines, name)(
            config, metric=METRIC, time_attr="epoch", max_t=space.epochs, do_minimize=False, random_seed=seed
        )
        return SyneTune(space, scheduler)

    return make
