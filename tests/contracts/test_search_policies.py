"""The contract of search policies and stop rules, for each implementation, sampler and pruner."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest

from service.domain.records import Observation
from service.domain.states import TrialState
from service.search.optuna_policy import OptunaPolicy
from service.search.policy import SearchPolicy, StopRule, Verdict
from service.search.pruners import PRUNERS
from service.search.samplers import SAMPLERS
from tests.contracts.problems import STRUCTURES, finished, history_of, problem, small, trial

POLICIES: dict[str, Callable[[], SearchPolicy]] = {"optuna": OptunaPolicy}
STOP_RULES: dict[str, Callable[[], StopRule]] = {"optuna": OptunaPolicy}


@pytest.fixture(params=sorted(POLICIES))
def make_policy(request: pytest.FixtureRequest) -> Callable[[], SearchPolicy]:
    return POLICIES[request.param]


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("objectives", [1, 2])
def test_a_rebuilt_history_gives_the_same_proposals_with_results_out_of_order(
    make_policy: Callable[[], SearchPolicy], sampler: str, objectives: int
) -> None:
    """Four trials run at a time and end in random order. At every ask, a policy and history that have seen everything
    agree with new ones that are built from the records in another order."""
    if objectives > 1 and not SAMPLERS[sampler].multi_objective:
        return  # such a study is rejected when it is created
    both = [{"metric": "accuracy", "direction": "maximize"}, {"metric": "parameters", "direction": "minimize"}]
    options = {"population_size": 4} if sampler in ("cmaes", "nsga2") else {}
    kept, p = make_policy(), problem({"objectives": both[:objectives]}, sampler=sampler, sampler_options=options)
    history, order = history_of(p, []), random.Random(3)
    trials: dict[int, Observation] = {}
    for number in range(10 if sampler == "gp" else 24):
        proposal = kept.propose(p, history, number)
        assert proposal is not None
        shuffled = order.sample(list(trials.values()), len(trials))
        assert make_policy().propose(p, history_of(p, shuffled), number) == proposal
        assert kept.propose(p, history, number) == proposal
        trials[number] = trial(number, proposal)
        history.update([trials[number]])
        running = [t for t in trials.values() if t.state is TrialState.RUNNING]
        if len(running) == 4:
            done = order.choice(running)
            trials[done.number] = finished(done)
            history.update([trials[done.number]])


def test_only_configurations_of_the_plan_are_proposed(make_policy: Callable[[], SearchPolicy]) -> None:
    policy, p = make_policy(), problem(sampler="random")
    seen = set()
    for number in range(300):
        proposal = policy.propose(p, history_of(p, []), number)
        assert proposal is not None
        params = proposal.params
        structure = p.plan.pair(params["r1"], params["r2"])
        assert structure is not None
        assert structure.r_low <= params["r"] <= structure.r_high
        assert params["alpha"] in (8, 16, 32, 64)
        assert 1e-4 <= params["learning_rate"] <= 5e-3
        seen.add((params["r1"], params["r2"], params["r"]))
    assert seen == {(s.r1, s.r2, r) for s in STRUCTURES for r in range(s.r_low, s.r_high + 1)}


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_no_configuration_runs_twice_and_an_exhausted_space_is_reported(
    make_policy: Callable[[], SearchPolicy], sampler: str
) -> None:
    """2 pairs x 2 r x 2 alphas x 2 rates = 16 configurations, each proposed once by every sampler.

    The Gaussian process is slow, so gp has one learning rate and 8 configurations.
    """
    policy, p = make_policy(), small(sampler=sampler)
    count = 16
    if sampler == "gp":
        p.spec.search_space.learning_rate.choices[:] = [0.001]
        count = 8
    history = history_of(p, [])
    for number in range(count):
        proposal = policy.propose(p, history, number)
        assert proposal is not None
        assert history.times_tried(proposal.params) == 0
        history.update([finished(trial(number, proposal))])
    assert policy.propose(p, history, count) is None


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_proposing_changes_neither_problem_nor_history(make_policy: Callable[[], SearchPolicy], sampler: str) -> None:
    p, policy = problem(sampler=sampler), make_policy()
    history = history_of(p, [])
    for number in range(3):
        proposal = policy.propose(p, history, number)
        assert proposal is not None
        history.update([finished(trial(number, proposal))])
    before = copy.deepcopy(history.observations()), p.spec.model_dump(), p.plan.model_dump()
    policy.propose(p, history, 3)
    assert (history.observations(), p.spec.model_dump(), p.plan.model_dump()) == before


@pytest.mark.parametrize("make_rule", STOP_RULES.values(), ids=STOP_RULES)
@pytest.mark.parametrize("pruner", sorted(PRUNERS))
def test_a_stop_rule_is_a_pure_function_of_the_history(make_rule: Callable[[], StopRule], pruner: str) -> None:
    """The same answer from a rule that has judged before and from a fresh one, in any order of the records."""
    p, kept = problem(pruner=pruner), make_rule()
    policy, order = OptunaPolicy(), random.Random(5)
    observations: list[Observation] = []
    for number in range(8):
        proposal: Any = policy.propose(p, history_of(p, observations), number)
        curve = tuple(0.5 + 0.1 * order.random() - 0.02 * number for _ in range(4))
        observations.append(trial(number, proposal, TrialState.COMPLETED, metrics={"accuracy": curve[-1]}, curve=curve))
    history = history_of(p, observations)
    for number in range(8):
        for evaluations in range(1, 5):
            said = kept.judge(p, history, number, evaluations)
            shuffled = history_of(p, order.sample(observations, len(observations)))
            assert make_rule().judge(p, shuffled, number, evaluations) is said
            assert kept.judge(p, history, number, evaluations) is said
    assert kept.judge(p, history, 99, 1) is Verdict.CONTINUE, "a trial that the history does not have"
    assert kept.judge(p, history, 0, 9) is Verdict.CONTINUE, "an evaluation that the trial does not have"
    if pruner == "none":
        assert {kept.judge(p, history, number, 4) for number in range(8)} == {Verdict.CONTINUE}


@pytest.mark.parametrize("make_rule", STOP_RULES.values(), ids=STOP_RULES)
@pytest.mark.parametrize("pruner", sorted(PRUNERS))
def test_promotions_are_a_pure_function_of_the_history(make_rule: Callable[[], StopRule], pruner: str) -> None:
    """Of nine trials that wait at their first rung, the three best; none where the pruner holds no trials."""
    p, order = problem({"training": {"epochs": 1}}, pruner=pruner), random.Random(5)
    proposal: Any = OptunaPolicy().propose(p, history_of(p, []), 0)
    held = [trial(n, proposal, TrialState.WAITING, curve=(0.1 * (n * 4 % 9),)) for n in range(9)]
    shuffled = order.sample(held, len(held))
    said = make_rule().promotions(p, history_of(p, held))
    assert make_rule().promotions(p, history_of(p, shuffled)) == said
    assert said == ([2, 4, 6] if pruner in ("asha", "hyperband") else [])
