"""The Gaussian process of the ``mfgp`` sampler and of the recheck's shortlist."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.optimize import check_grad

from service.domain.plan import Plan
from service.domain.records import Observation
from service.domain.search_space import Pair
from service.domain.states import TrialState
from service.domain.study_spec import StudySpec
from service.search.coordinates import to_point
from service.search.cube import Cube
from service.search.history import History
from service.search.optuna_policy import OptunaPolicy
from service.search.policy import Problem
from service.search.shortlist import shortlist
from service.search.surrogate import Data, Surrogate, warped
from tests.conftest import make_study


def data(count: int, seed: int = 0) -> Data:
    order = np.random.default_rng(seed)
    x, stage = order.random((count, 3)), order.choice([0.0, 0.6, 1.0], count)
    y = np.sin(4 * x[:, 0]) + 0.5 * x[:, 1] + 0.4 * stage + order.normal(0, 0.05, count)
    return Data(x, stage, (y - y.mean()) / y.std())


def test_the_gradient_of_the_posterior_is_right() -> None:
    made = Surrogate(data(25))
    start = made._priors()[:, 0] + np.random.default_rng(1).normal(0, 0.3, len(made._priors()))
    off = check_grad(lambda h: made._loss(h)[0], lambda h: made._loss(h)[1], start)
    assert off < 1e-3 * np.linalg.norm(made._loss(start)[1])


def test_full_trainings_are_predicted_from_short_ones_too() -> None:
    made = Surrogate(data(60))
    x = np.random.default_rng(2).random((200, 3))
    truth = np.sin(4 * x[:, 0]) + 0.5 * x[:, 1]
    mean, deviation = made.predict(x)
    assert np.corrcoef(mean, truth)[0, 1] > 0.95
    assert np.all(deviation > 0)


def test_a_believed_training_narrows_the_prediction_there_and_keeps_its_mean() -> None:
    made = Surrogate(data(20))
    x = np.array([0.9, 0.1, 0.5])
    mean, deviation = made.predict(x[None])
    after, narrower = made.believed(x[None]).predict(x[None])
    assert after == pytest.approx(mean, abs=0.05)
    assert narrower[0] < deviation[0]


def test_values_far_below_the_median_do_not_stretch_the_scale() -> None:
    values = np.array([0.9, 0.91, 0.92, 0.93, 0.94, 0.2, 0.89])
    found = warped(values)
    assert np.argsort(found).tolist() == np.argsort(values).tolist()
    # The spread of the good values stays visible beside the failed one.
    assert found[4] - found[0] > 0.4 * np.ptp(found) - 1e-9
    assert warped(np.array([0.5, 0.5, 0.5])).tolist() == [0.0, 0.0, 0.0]


def test_a_cube_keeps_numbers_in_order_and_names_apart() -> None:
    cube = Cube(
        {
            "alpha": CategoricalDistribution([8.0, 16.0, 64.0]),
            "method": CategoricalDistribution(["cdka", "lora", "miss"]),
            "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
            "structure": IntDistribution(0, 4),
        }
    )
    point = {"alpha": 16.0, "method": "lora", "learning_rate": 1e-3, "structure": 2}
    again = cube.point(cube.places(point))
    assert again.pop("learning_rate") == pytest.approx(1e-3)
    assert again == {name: value for name, value in point.items() if name != "learning_rate"}
    near, far = ({**point, "alpha": a} for a in (8.0, 64.0))
    distance = [float(np.linalg.norm(cube.features(point) - cube.features(p))) for p in (near, far)]
    assert distance[0] == pytest.approx(distance[1])
    names = [{**point, "method": m} for m in ("cdka", "miss")]
    assert all(np.linalg.norm(cube.features(point) - cube.features(p)) == pytest.approx(1.0) for p in names)


def problem(**search: Any) -> Problem:
    structures = tuple(Pair(r1=1, r2=r2, r_low=4, r_high=4, unit_parameters=8) for r2 in (1, 2, 4, 8))
    plan = Plan(shapes=(), max_parameters=64, min_fill=0, base_parameters=1, structures=structures)
    space = {"r1": 1, "r2": {"choices": [1, 2, 4, 8]}}
    return Problem("study", StudySpec.model_validate(make_study(search=search, search_space=space)), plan)


def trial(made: Problem, number: int, r2: int, alpha: float, rate: float, value: float) -> Observation:
    params = {"r1": 1, "r2": r2, "r": 4, "alpha": alpha, "learning_rate": rate}
    point = to_point(params, made.spec, made.plan)
    metrics = {"accuracy": value}
    return Observation(number, TrialState.COMPLETED, params, point, metrics=metrics, curve=(value - 0.1, value))


def searched(made: Problem) -> list[Observation]:
    """Accuracy peaks at a learning rate of 1e-3; trial 19, far off, was lucky."""
    order = np.random.default_rng(3)
    found = []
    for number in range(19):
        rate = float(10 ** order.uniform(-4, -2.4))
        value = 0.9 - 0.3 * (np.log10(rate) + 3) ** 2 + order.normal(0, 0.01)
        found.append(
            trial(made, number, int(2 ** order.integers(4)), float(2 ** order.integers(3, 7)), rate, float(value))
        )
    return [*found, trial(made, 19, 2, 16.0, 1.1e-4, 0.93)]


def test_the_shortlist_has_the_best_value_and_what_the_model_bears_out() -> None:
    made = problem()
    found = shortlist(made, searched(made), 3)
    assert found[0].number == 19
    assert all(5e-4 < t.params["learning_rate"] < 2e-3 for t in found[1:])
    assert shortlist(made, searched(made), 3) == found


def test_few_trials_and_trials_outside_the_space_are_ranked_by_value() -> None:
    made = problem()
    few = [trial(made, k, 2, 8.0, 1e-3, 0.5 + 0.01 * k) for k in range(4)]
    assert [t.number for t in shortlist(made, few, 3)] == [3], "all four are one configuration"
    outside = Observation(7, TrialState.COMPLETED, {"r1": 1, "r2": 2, "r": 1}, None, metrics={"accuracy": 0.99})
    assert next(t.number for t in shortlist(made, [*searched(made), outside], 2)) == 7
    assert shortlist(made, [], 3) == []
    same = [trial(made, k, 2, 8.0, 1e-3 + 1e-5 * k, 0.5) for k in range(10)]
    assert [t.number for t in shortlist(made, same, 2)] == [0, 1], "equal values keep their order"


def test_mfgp_finds_the_best_region_from_trials_of_every_length() -> None:
    made = problem(sampler="mfgp", trials=40)
    history, policy = History(made.spec.all_objectives), OptunaPolicy()
    for number in range(20):
        proposal = policy.propose(made, history, number)
        assert proposal is not None
        value = 0.9 - 0.3 * (np.log10(proposal.params["learning_rate"]) + 3) ** 2
        full = number % 2 == 0
        curve = (value - 0.1, value) if full else (value - 0.1,)
        state = TrialState.COMPLETED if full else TrialState.PRUNED
        metrics = {"accuracy": float(value)} if full else {}
        history.update(
            [Observation(number, state, proposal.params, proposal.point, metrics=metrics, curve=curve, version=number)]
        )
    late = [history.get(k) for k in range(12, 20)]
    rates = [t.params["learning_rate"] for t in late if t is not None]
    assert float(np.median(np.abs(np.log10(rates) + 3))) < 0.35
