"""The service's own policy and stop rule as a :class:`~benchmarks.searchers.Searcher`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.domain.plan import Plan
from service.domain.records import Observation, StoredPrediction
from service.domain.search_space import Pair
from service.domain.states import TrialState
from service.domain.study_spec import StudySpec
from service.search.coordinates import to_point
from service.search.history import History
from service.search.optuna_policy import OptunaPolicy
from service.search.policy import Problem, Verdict
from service.search.pruners import Halving
from service.search.shortlist import shortlist
from service.studies.structures import prior_of

from .searchers import METRIC, Make, Next, Space
from .tables.replay import rankings


class Service:
    """The service's policy and stop rule, driven as its server drives them.

    ``start``: whether the search begins with the predictors' choices. ``prior``: whether their ratings guide it.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        runners: int,
        *,
        sampler: str,
        pruner: str,
        start: bool,
        prior: bool,
        options: dict[str, Any],
    ) -> None:
        spec = {
            "name": "recorded",
            "model": {"path": "none"},
            "task": {"kind": "sequence_classification", "dataset": {"path": "none"}, "metric": METRIC},
            "training": {"epochs": space.epochs},
            "budget": {"configuration": {"r1": 2, "r2": 8, "r": 4}},
            "search_space": {
                "r1": {"choices": sorted({r1 for r1, _ in space.structures})},
                "r2": {"choices": sorted({r2 for _, r2 in space.structures})},
                "alpha": {"choices": list(space.alphas)},
                "learning_rate": {"low": space.rates[0], "high": space.rates[1], "log": True},
            },
            # More trials than any budget of epochs, so that no searcher ends before it is spent.
            "search": {
                "sampler": sampler,
                "sampler_options": options,
                "pruner": pruner,
                "trials": 1000,
                "concurrency": runners,
                "seed": seed,
                "prior": "predictors" if prior else "none",
            },
        }
        pairs = [Pair(r1=a, r2=b, r_low=r, r_high=r, unit_parameters=1) for (a, b), r in space.structures.items()]
        plan = Plan(
            shapes=(),
            max_parameters=1,
            min_fill=0,
            base_parameters=1,
            structures=tuple(sorted(pairs, key=lambda pair: pair.order)),
        )
        predicted = {
            name: [StoredPrediction(*pair, r, 1, 0.0, "") for pair in order if (r := space.structures.get(pair))]
            for name, order in rankings().items()
        }
        plan = plan.model_copy(update={"prior": prior_of(plan, predicted)})
        self.problem = Problem("recorded", StudySpec.model_validate(spec), plan)
        self.policy = OptunaPolicy()
        self.history = History(self.problem.spec.all_objectives)
        self.halving = Halving.of(self.problem.spec)
        self.first = [dict(params) for params in space.start] if start else []
        self.version = 0

    def _put(self, seen: Observation) -> None:
        self.version += 1
        self.history.update([replace(seen, version=self.version)])

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """See :class:`Searcher`."""
        if self.halving is not None and (ready := self.halving.promotions(self.history.observations())):
            known = self.history.get(ready[0])
            assert known is not None
            self._put(replace(known, state=TrialState.RUNNING))
            return known.number, known.params
        number = len(self.history)
        if number < len(self.first):
            params = self.first[number]
            point = to_point(params, self.problem.spec, self.problem.plan)
            self._put(Observation(number, TrialState.RUNNING, params, point))
            return number, params
        proposal = self.policy.propose(self.problem, self.history, number)
        if proposal is None:
            return None
        self._put(Observation(number, TrialState.RUNNING, proposal.params, proposal.point, proposal.attrs))
        return number, proposal.params

    def tell(self, number: int, value: float, *, last: bool) -> Next:
        """See :class:`Searcher`."""
        seen = self.history.get(number)
        assert seen is not None
        seen = replace(seen, curve=(*seen.curve, value))
        if last:
            self._put(replace(seen, state=TrialState.COMPLETED, metrics={METRIC: value}))
            return Next.STOP
        self._put(seen)
        verdict = self.policy.judge(self.problem, self.history, number, len(seen.curve))
        if verdict is Verdict.CONTINUE:
            return Next.CONTINUE
        state = TrialState.WAITING if verdict is Verdict.WAIT else TrialState.PRUNED
        self._put(replace(seen, state=state))
        return Next.WAIT if verdict is Verdict.WAIT else Next.STOP

    def shortlist(self, count: int) -> list[int]:
        """The trials that the recheck would repeat.

        The service goes on until some trials have completed. A budget of epochs may end before that; then these are
        the best of the longest.
        """
        found = [t.number for t in shortlist(self.problem, self.history.observations(), count)]
        return found or self._longest()[:count]

    def chosen(self) -> int | None:
        """The completed trial with the best value; before any has completed, the best of the longest."""
        return next(iter(self._longest()), None)

    def _longest(self) -> list[int]:
        trials = [t for t in self.history.observations() if t.curve]
        return [t.number for t in sorted(trials, key=lambda t: (-len(t.curve), -t.curve[-1], t.number))]


def service(sampler: str, pruner: str, *, start: bool = True, prior: bool = False, **options: Any) -> Make:
    """The service with these strategies."""
    return lambda space, seed, runners: Service(
        space, seed, runners, sampler=sampler, pruner=pruner, start=start, prior=prior, options=options
    )
