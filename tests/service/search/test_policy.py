"""The Optuna policy is a pure function of the recorded history."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import optuna
import pytest

from service.domain.plan import Plan
from service.domain.records import Observation
from service.domain.states import FailureKind, TrialState
from service.domain.study_spec import StudySpec
from service.search.coordinates import distributions
from service.search.optuna_policy import OptunaPolicy, derive_seed
from service.search.policy import Problem, Proposal, Verdict
from service.search.pruners import PRUNERS
from service.search.storage import frozen
from tests.conftest import make_study
from tests.contracts.problems import ONE, SMALL, finished, history_of, problem, small, trial, value_of


def test_different_numbers_and_seeds_propose_different_points() -> None:
    policy = OptunaPolicy()
    empty = history_of(problem(), [])
    points = [policy.propose(problem(), empty, n).params["learning_rate"] for n in range(20)]
    points += [policy.propose(problem(seed=1), empty, n).params["learning_rate"] for n in range(20)]
    assert len(set(points)) == 40
    assert derive_seed(0, 1) != derive_seed(1, 0)


def test_tpe_learns_from_results() -> None:
    """After 60 trials its last ten are better on average than ten random ones."""
    policy, p = OptunaPolicy(), problem()
    history = history_of(p, [])
    for number in range(60):
        history.update([finished(trial(number, policy.propose(p, history, number)))])
    late = [value_of(t.params) for t in history.observations()[-10:]]
    blind = [value_of(policy.propose(problem(sampler="random"), history_of(p, []), n).params) for n in range(10)]
    assert sum(late) / 10 > sum(blind) / 10 + 0.02


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "nsga2"])
def test_a_configuration_outside_the_space_changes_no_proposal(sampler: str) -> None:
    """Optuna infers a space from what all trials share, which one foreign trial would empty."""
    policy, p = OptunaPolicy(), problem(sampler=sampler)
    history = history_of(p, [])
    for number in range(1, 12):
        history.update([finished(trial(number, policy.propose(p, history, number)))])
    foreign = Proposal({"r1": 3, "r2": 3, "r": 1, "alpha": 999.0, "learning_rate": 1.0}, None)  # type: ignore[arg-type]
    beside = history_of(p, [*history.observations(), finished(trial(0, foreign))])
    assert [policy.propose(p, beside, n) for n in range(12, 16)] == [
        policy.propose(p, history, n) for n in range(12, 16)
    ]


def test_a_large_space_of_which_all_is_barred_ends_the_search() -> None:
    """Its points are never listed: there may be hundreds of millions."""
    space = {
        **SMALL,
        "dropout": {"low": 0, "high": 0.5, "step": 0.0001},
        "weight_decay": {"low": 0, "high": 0.1, "step": 0.00001},
    }
    spec = StudySpec.model_validate(make_study(search_space=space))
    p = Problem("s", spec, Plan(shapes=(), max_parameters=9, min_fill=0, base_parameters=0, structures=(ONE,)))
    policy, history = OptunaPolicy(), history_of(small(), [])
    first = policy.propose(p, history, 0)
    assert first is not None
    history.update([trial(0, first, TrialState.INFEASIBLE, failure=FailureKind.OUT_OF_MEMORY)])
    assert policy.propose(p, history, 1) is None


def test_tpe_weighs_parameters_together() -> None:
    """The values of one proposal come from one draw: alone, the parameters would be seen as independent."""
    policy, p = OptunaPolicy(), problem(sampler="tpe")
    history = history_of(p, [])
    for number in range(12):
        history.update([finished(trial(number, policy.propose(p, history, number)))])
    proposal = policy.propose(p, history, 12)
    assert proposal is not None
    trials = [frozen(o, distributions(p.spec, p.plan), history.values(o)) for o in history.observations()]
    sampler = optuna.samplers.TPESampler(
        seed=derive_seed(0, 12), multivariate=True, constant_liar=True, n_startup_trials=5
    )
    live = optuna.create_study(direction="maximize", sampler=sampler)
    live.add_trials(trials)
    space = dict(sorted(distributions(p.spec, p.plan).items()))
    drawn = sampler.sample_relative(live, live.ask()._get_latest_trial(), space)
    assert proposal.point == drawn


def test_a_space_of_one_point_needs_no_sampler() -> None:
    spec = make_study(search_space={"r1": 2, "r2": 4, "alpha": 16, "learning_rate": 1e-3})
    plan = Plan(shapes=(), max_parameters=9, min_fill=0, base_parameters=0, structures=(ONE,))
    p = Problem("s", StudySpec.model_validate(spec), plan)
    proposal = OptunaPolicy().propose(p, history_of(p, []), 0)
    assert proposal is not None
    assert proposal.point == {}
    assert proposal.params == {"r1": 2, "r2": 4, "r": 3, "alpha": 16.0, "learning_rate": 1e-3}


LIVE: dict[str, Any] = {
    "asha": (lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3), {"promotion": False}),
    "median": (lambda: optuna.pruners.MedianPruner(n_startup_trials=5), {}),
    "percentile": (lambda: optuna.pruners.PercentilePruner(25.0, n_startup_trials=5), {}),
    "patient": (lambda: optuna.pruners.PatientPruner(None, patience=2), {}),
    "wilcoxon": (lambda: optuna.pruners.WilcoxonPruner(), {}),
}


@pytest.mark.parametrize("name", LIVE)
def test_pruners_decide_like_optunas_own_on_a_live_study(name: str) -> None:
    """The same evaluations in the same order, once through Optuna's storage and once through our replay."""
    make, options = LIVE[name]
    pruner = make()
    policy, p = OptunaPolicy(), problem(pruner=name, pruner_options=options)
    live = optuna.create_study(study_name="history", direction="maximize", pruner=pruner)
    order = random.Random(0)
    history = history_of(p, [])
    empty = history_of(p, [])
    decisions, version = [], 0
    for number in range(30):
        asked = live.ask()
        seen = trial(number, policy.propose(p, empty, number))
        quality = order.random()
        for step in range(1, 10):
            value = quality + order.random() / 2
            version += 1
            asked.report(value, step)
            seen = replace(seen, curve=(*seen.curve, value), version=10_000 + version)
            history.update([seen])
            theirs = asked.should_prune()
            ours = Verdict.STOP if theirs else Verdict.CONTINUE
            assert policy.judge(p, history, number, step) is ours
            assert OptunaPolicy().judge(p, history_of(p, history.observations()), number, step) is ours
            if theirs:
                live.tell(asked, state=optuna.trial.TrialState.PRUNED)
                seen = replace(seen, state=TrialState.PRUNED, version=20_000 + version)
                decisions.append(step)
                break
        else:
            live.tell(asked, value)
            seen = replace(seen, state=TrialState.COMPLETED, metrics={"accuracy": value}, version=20_000 + version)
        history.update([seen])
    assert decisions  # at least one trial was stopped, so the comparison means something
    assert set(LIVE) == set(PRUNERS) - {"none", "hyperband"}


def test_pruning_with_several_objectives_uses_the_pruning_metric() -> None:
    both = [{"metric": "accuracy", "direction": "maximize"}, {"metric": "parameters", "direction": "minimize"}]
    p = problem({"objectives": both}, pruner="median", pruner_options={"n_startup_trials": 1}, pruning_metric="loss")
    start = OptunaPolicy().propose(p, history_of(p, []), 0)
    good = replace(trial(0, start), state=TrialState.COMPLETED, curve=(0.2, 0.1), metrics={"accuracy": 1.0})
    worse, better = replace(trial(1, start), curve=(0.9,)), replace(trial(2, start), curve=(0.1,))
    history = history_of(p, [good, worse, better])
    assert OptunaPolicy().judge(p, history, 1, 1) is Verdict.STOP  # a lower loss is better
    assert OptunaPolicy().judge(p, history, 2, 1) is Verdict.CONTINUE


def test_replicates_run_the_same_configuration_several_times() -> None:
    policy, p = OptunaPolicy(), small(sampler="grid", replicates=2)
    history, replicates = history_of(p, []), []
    for number in range(32):
        proposal = policy.propose(p, history, number)
        assert proposal is not None
        replicates.append(proposal.replicate)
        history.update([finished(trial(number, proposal))])
    assert replicates == [0] * 16 + [1] * 16
    assert policy.propose(p, history, 32) is None


def test_infeasible_configurations_are_never_proposed_again() -> None:
    policy, p = OptunaPolicy(), small(sampler="grid", replicates=5)
    first = policy.propose(p, history_of(p, []), 0)
    assert first is not None
    for kind, left in ((FailureKind.OUT_OF_MEMORY, 12), (FailureKind.DIVERGED, 15)):
        # Out of memory excludes the structure with all four pairs of alpha and rate; divergence excludes one point.
        history = history_of(p, [trial(0, first, TrialState.INFEASIBLE, failure=kind)])
        seen = set()
        for number in range(1, 1 + 5 * left):
            proposal = policy.propose(p, history, number)
            assert proposal is not None
            seen.add(tuple(proposal.params.items()))
            history.update([finished(trial(number, proposal))])
        assert len(seen) == left
        assert policy.propose(p, history, 1000) is None


def test_failed_and_cancelled_trials_do_not_use_up_their_configuration() -> None:
    policy, p = OptunaPolicy(), small(sampler="grid")
    first = policy.propose(p, history_of(p, []), 0)
    for state, left in ((TrialState.FAILED, 16), (TrialState.CANCELLED, 16), (TrialState.PRUNED, 15)):
        history = history_of(p, [trial(0, first, state)])
        for number in range(1, 1 + left):
            proposal = policy.propose(p, history, number)
            assert proposal is not None
            history.update([finished(trial(number, proposal))])
        assert policy.propose(p, history, 99) is None


def test_a_long_history_is_cut_to_its_best_quarter_and_most_recent_trials() -> None:
    p = problem()
    order = random.Random(1)
    trials = []
    for number in range(400):
        value = order.random()
        observed = Observation(number, TrialState.COMPLETED, {"r": number}, {}, metrics={"accuracy": value})
        trials.append(replace(observed, version=number))
    running = Observation(400, TrialState.RUNNING, {"r": 400}, {}, version=400)
    chosen = history_of(p, [*trials, running]).selected(100)
    best = sorted(trials, key=lambda t: -t.metrics["accuracy"])[:25]
    recent = [t for t in trials if t not in best][-75:]
    assert {t.number for t in chosen} == {t.number for t in [*best, *recent, running]}
    assert [t.number for t in chosen] == sorted(t.number for t in chosen)


def test_cmaes_finds_better_points_than_chance() -> None:
    """The best quarter of what it finds is better than the best quarter of as many random points."""

    def best_quarter(p: Problem) -> float:
        policy, history = OptunaPolicy(), history_of(p, [])
        for number in range(160):
            history.update([finished(trial(number, policy.propose(p, history, number)))])
        values = sorted(value_of(t.params) for t in history.observations())
        return sum(values[-40:]) / 40

    found = best_quarter(problem(sampler="cmaes", sampler_options={"population_size": 8}))
    assert found > best_quarter(problem(sampler="random"))


def test_a_sobol_sequence_spreads_evenly() -> None:
    """Each eighth of the learning rate's range contains 8 of 64 points."""
    policy, p = OptunaPolicy(), problem(sampler="qmc")
    history = history_of(p, [])
    points = [policy.propose(p, history, n) for n in range(64)]
    eighths = [int(math.log(q.params["learning_rate"] / 1e-4) / math.log(50) * 8) for q in points if q]
    assert [eighths.count(k) for k in range(8)] == [8] * 8
