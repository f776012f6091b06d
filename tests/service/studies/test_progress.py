"""A search ends when its space is used up; two objectives give a Pareto front."""

from __future__ import annotations

import pytest

from tests.conftest import Api

from ..helpers import study_of, trials_of

pytestmark = pytest.mark.usefixtures("in_order")


def test_a_space_that_is_used_up_ends_the_search(api: Api) -> None:
    space = {"r1": 2, "r2": {"choices": [2, 4]}, "alpha": {"choices": [8, 16]}, "learning_rate": 0.001}
    study = api.create(search={"trials": 50, "sampler": "random", "concurrency": 3}, search_space=space)
    done = api.run_all(lambda t: 0.5)
    assert len({tuple(t["params"].items()) for t in done}) == len(done) < 50
    read = study_of(api, study)
    assert (read["state"], read["search"]["planned"]) == ("completed", len(done))
    renamed = api.call("PATCH", f"/studies/{study['id']}", json={"name": "used up"}).json()
    assert (renamed["state"], renamed["search"]["planned"]) == ("completed", len(done))


def test_two_objectives_have_a_front(api: Api) -> None:
    objectives = [
        {"metric": "accuracy", "direction": "maximize"},
        {"metric": "parameters", "direction": "minimize"},
    ]
    study = api.create(
        objectives=objectives,
        search={"trials": 12, "sampler": "nsga2", "pruner": "median"},
        budget={"configuration": {"r1": 2, "r2": 4, "r": 4}, "min_fill": 0.2},
        search_space={"r1": {"choices": [1, 2, 4]}, "r2": {"choices": [1, 2, 4, 8]}, "r": {"low": 1, "high": 8}},
    )
    done = api.run_all(lambda t: 0.5 + 0.01 * (t["number"] % 3))
    assert len(done) == 12
    front = api.call("GET", f"/studies/{study['id']}/front").json()
    assert front["objectives"] == objectives
    pairs = [(t["metrics"]["accuracy"], t["metrics"]["parameters"]) for t in trials_of(api, study)]
    expected = {p for p in pairs if not any(q[0] >= p[0] and q[1] <= p[1] and q != p for q in pairs)}
    assert {(t["metrics"]["accuracy"], t["metrics"]["parameters"]) for t in front["trials"]} == expected
