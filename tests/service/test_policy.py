"""The Optuna policy is a pure function of the recorded history."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import optuna
import pytest

from service.domain.plan import Plan
from service.domain.records import Trial
from service.domain.search_space import Structure
from service.domain.states import TrialPhase, TrialState
from service.domain.study_spec import StudySpec
from service.search.optuna_policy import OptunaPolicy, derive_seed
from service.search.policy import Problem
from tests.conftest import make_study

STRUCTURES = sorted(
    [Structure(r1=a, r2=b, r_low=2, r_high=2 + a, unit_parameters=10) for a in (1, 2, 4) for b in (1, 2, 4, 8)],
    key=lambda s: s.order,
)

ONE = Structure(r1=2, r2=4, r_low=3, r_high=3, unit_parameters=1)


def problem(**search: Any) -> Problem:
    spec = StudySpec.model_validate(make_study(search={"trials": 50, **search}))
    plan = Plan(shapes=(), max_parameters=1000, min_fill=0.5, base_parameters=0, structures=tuple(STRUCTURES))
    return Problem("study", spec, plan)


def trial(number: int, proposal: Any, state: TrialState = TrialState.RUNNING, **values: Any) -> Trial:
    return Trial(
        id=f"t{number}",
        study_id="study",
        number=number,
        phase=TrialPhase.SEARCH,
        method="cdka",
        candidate=None,
        params=proposal.params,
        point=proposal.point,
        seed=0,
        state=state,
        parameters=10,
        metrics=values.pop("metrics", {}),
        scores=None,
        failure=None,
        lease_id=None,
        attempts=1,
        errors=0,
        losses=0,
        checkpoint=None,
        artifact=None,
        resources={},
        stop_reason=None,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        started_at=None,
        finished_at=None,
        **values,
    )


def value_of(params: dict[str, Any]) -> float:
    return 1.0 - abs(params["learning_rate"] - 1e-3) * 100 - 0.1 * abs(params["r1"] - 2)


def finished(t: Trial) -> Trial:
    value = value_of(t.params)
    return replace(t, state=TrialState.COMPLETED, metrics={"accuracy": value}, curve={1: value / 2, 2: value})


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_kept_and_rebuilt_histories_propose_the_same_with_four_at_once_and_results_out_of_order(sampler: str) -> None:
    """Four trials run at any time and end in random order; at every ask a policy that has seen everything, one that
    starts anew, and one given the history in another order agree."""
    kept, p = OptunaPolicy(), problem(sampler=sampler)
    order = random.Random(3)
    history: dict[int, Trial] = {}
    for number in range(40):
        given = list(history.values())
        proposal = kept.propose(p, given, number)
        shuffled = order.sample(given, len(given))
        assert OptunaPolicy().propose(p, shuffled, number) == proposal
        assert kept.propose(p, given, number) == proposal
        history[number] = trial(number, proposal)
        running = [t for t in history.values() if t.state is TrialState.RUNNING]
        if len(running) == 4:
            done = order.choice(running)
            history[done.number] = finished(done)


def test_different_numbers_and_seeds_propose_different_points() -> None:
    policy = OptunaPolicy()
    points = [policy.propose(problem(), [], n).params["learning_rate"] for n in range(20)]
    points += [policy.propose(problem(seed=1), [], n).params["learning_rate"] for n in range(20)]
    assert len(set(points)) == 40
    assert derive_seed(0, 1) != derive_seed(1, 0)


def test_only_admitted_configurations_are_proposed() -> None:
    policy, p = OptunaPolicy(), problem(sampler="random")
    seen = set()
    for number in range(300):
        params = policy.propose(p, [], number).params
        structure = p.plan.structure(params["r1"], params["r2"])
        assert structure is not None
        assert structure.r_low <= params["r"] <= structure.r_high
        assert params["alpha"] in (8, 16, 32)
        assert 1e-4 <= params["learning_rate"] <= 5e-3
        seen.add((params["r1"], params["r2"], params["r"]))
    assert seen == {(s.r1, s.r2, r) for s in STRUCTURES for r in range(s.r_low, s.r_high + 1)}


def test_tpe_learns_from_results() -> None:
    """After 60 trials its last ten are better on average than ten random ones."""
    policy, p = OptunaPolicy(), problem()
    history: list[Trial] = []
    for number in range(60):
        history.append(finished(trial(number, policy.propose(p, history, number))))
    late = [value_of(t.params) for t in history[-10:]]
    blind = [value_of(policy.propose(problem(sampler="random"), [], n).params) for n in range(10)]
    assert sum(late) / 10 > sum(blind) / 10 + 0.02


def test_a_space_of_one_point_needs_no_sampler() -> None:
    spec = make_study(search_space={"r1": 2, "r2": 4, "alpha": 16, "learning_rate": 1e-3})
    plan = Plan(shapes=(), max_parameters=9, min_fill=0, base_parameters=0, structures=(ONE,))
    proposal = OptunaPolicy().propose(Problem("s", StudySpec.model_validate(spec), plan), [], 0)
    assert proposal.point == {}
    assert proposal.params == {"r1": 2, "r2": 4, "r": 3, "alpha": 16.0, "learning_rate": 1e-3}


def test_asha_decides_as_optunas_own_pruner_on_a_live_study() -> None:
    """The same evaluations in the same order, once through Optuna's storage and once through our replay."""
    policy, p = OptunaPolicy(), problem(pruner="asha")
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    live = optuna.create_study(direction="maximize", pruner=pruner)
    order = random.Random(0)
    history: list[Trial] = []
    decisions = []
    for number in range(30):
        asked = live.ask()
        history.append(trial(number, policy.propose(p, [], number)))
        for step in range(1, 10):
            value = order.random()
            asked.report(value, step)
            history[number] = replace(history[number], curve={**history[number].curve, step: value})
            theirs = asked.should_prune()
            ours = policy.should_stop(p, history, history[number])
            assert ours == theirs
            if theirs:
                live.tell(asked, state=optuna.trial.TrialState.PRUNED)
                history[number] = replace(history[number], state=TrialState.PRUNED)
                decisions.append(step)
                break
        else:
            live.tell(asked, value)
            history[number] = replace(history[number], state=TrialState.COMPLETED, metrics={"accuracy": value})
    assert {1, 3} <= set(decisions)  # both rungs were decided on
