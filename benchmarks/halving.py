"""Simulate successive halving that stops trials for good against successive halving that promotes them.

    python -m benchmarks.halving

Each trial has a true quality, standard normal, that its evaluations show gradually and with noise that fades. Two
runners work through the search with the service's own rule. Prints, over 200 searches each: how often the truly best
configuration did not complete, how many trials completed, the cost in full trainings, and the mean loss of quality
against the best configuration tried. No training runs, so the figures say nothing about a real task.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from statistics import mean

from service.domain.records import Observation
from service.domain.states import TrialState
from service.domain.study_spec import StudySpec
from service.search.policy import Verdict
from service.search.pruners import Halving

STUDIES, RUNNERS, NOISE = 200, 2, 0.3
ENDED = (TrialState.COMPLETED, TrialState.PRUNED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One simulated search."""

    lost_the_best: bool
    completed: int
    trainings: float
    regret: float


def rule(trials: int, epochs: int, *, promotion: bool) -> Halving:
    """The service's rule for a study of this size."""
    spec = StudySpec.model_validate(
        {
            "name": "simulated",
            "model": {"path": "none"},
            "task": {"kind": "sequence_classification", "dataset": {"path": "none"}},
            "budget": {"lora_rank": 8},
            "training": {"epochs": epochs},
            "search": {"trials": trials, "pruner": "asha", "pruner_options": {"promotion": promotion}},
        }
    )
    found = Halving.of(spec)
    assert found is not None
    return found


class Search:
    """One search, by the clock of its evaluations."""

    def __init__(self, halving: Halving, trials: int, epochs: int, seed: int) -> None:
        random_ = random.Random(seed)
        self.halving, self.trials, self.epochs = halving, trials, epochs
        self.quality = [random_.gauss(0, 1) for _ in range(trials)]
        self.noise = [[random_.gauss(0, NOISE) for _ in range(epochs)] for _ in range(trials)]
        self.seen: dict[int, Observation] = {}
        self.active: list[int] = []

    def value(self, number: int, evaluation: int) -> float:
        """What an evaluation shows of a trial's quality."""
        share = evaluation / self.epochs
        return self.quality[number] * share**0.5 + self.noise[number][evaluation - 1] * (1 - share)

    def run(self) -> Outcome:
        """Work through the search."""
        evaluations = 0
        while self._assign():
            for number in list(self.active):
                evaluations += 1
                self._evaluate(number)
        completed = [n for n, o in self.seen.items() if o.state is TrialState.COMPLETED]
        best = max(range(self.trials), key=self.quality.__getitem__)
        regret = self.quality[best] - max(self.quality[n] for n in completed)
        return Outcome(best not in completed, len(completed), evaluations / self.epochs, regret)

    def _evaluate(self, number: int) -> None:
        trial = self.seen[number]
        evaluation = len(trial.curve) + 1
        self.seen[number] = replace(trial, curve=(*trial.curve, self.value(number, evaluation)))
        if evaluation == self.epochs:
            return self._end(number, TrialState.COMPLETED)
        verdict = self.halving.judge(list(self.seen.values()), number, evaluation)
        if verdict is not Verdict.CONTINUE:
            self._end(number, TrialState.WAITING if verdict is Verdict.WAIT else TrialState.PRUNED)
        return None

    def _end(self, number: int, state: TrialState) -> None:
        self.seen[number] = replace(self.seen[number], state=state)
        self.active.remove(number)

    def _assign(self) -> bool:
        """Give idle runners trials: promoted ones, then new ones, and at the end those that have to finish."""
        while len(self.active) < RUNNERS:
            everything = list(self.seen.values())
            ready = [n for n in self.halving.promotions(everything) if n not in self.active]
            if not ready and len(self.seen) < self.trials:
                ready = [len(self.seen)]
            elif not ready and not self.active:
                ready = self.halving.last_promotions(everything)
            if not ready:
                break
            known = self.seen.get(ready[0], Observation(ready[0], TrialState.QUEUED, {}))
            self.seen[ready[0]] = replace(known, state=TrialState.RUNNING)
            self.active.append(ready[0])
        return bool(self.active)


def main() -> None:
    """Print the table."""
    print(f"{STUDIES} simulated searches each, {RUNNERS} runners, reduction factor 3")
    for trials in (10, 24):
        for epochs in (3, 9):
            for promotion in (False, True):
                halving = rule(trials, epochs, promotion=promotion)
                found = [Search(halving, trials, epochs, seed).run() for seed in range(STUDIES)]
                print(
                    f"{trials} trials of {epochs} evaluations, {'promotes' if promotion else 'stops   '}: "
                    f"best lost {mean(o.lost_the_best for o in found):4.0%}, "
                    f"completed {mean(o.completed for o in found):4.1f}, "
                    f"cost {mean(o.trainings for o in found):4.1f} trainings, "
                    f"regret {mean(o.regret for o in found):.3f}"
                )


if __name__ == "__main__":
    main()
