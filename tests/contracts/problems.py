"""Search problems and histories for tests of policies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.domain.plan import Plan
from service.domain.records import Observation
from service.domain.search_space import Pair
from service.domain.states import TrialState
from service.domain.study_spec import StudySpec
from service.search.history import History
from service.search.policy import Problem
from tests.conftest import make_study

STRUCTURES = sorted(
    [Pair(r1=a, r2=b, r_low=2, r_high=2 + a, unit_parameters=10) for a in (1, 2, 4) for b in (1, 2, 4, 8)],
    key=lambda s: s.order,
)
ONE = Pair(r1=2, r2=4, r_low=3, r_high=3, unit_parameters=1)
SMALL = {
    "r1": 2,
    "r2": {"choices": [1, 2]},
    "alpha": {"choices": [8, 16]},
    "learning_rate": {"choices": [0.001, 0.002]},
}
PAIR = tuple(Pair(r1=2, r2=b, r_low=2, r_high=3, unit_parameters=1) for b in (1, 2))


def problem(changes: dict[str, Any] | None = None, /, **search: Any) -> Problem:
    spec = StudySpec.model_validate(make_study(search={"trials": 50, **search}, **(changes or {})))
    plan = Plan(shapes=(), max_parameters=1000, min_fill=0.5, base_parameters=0, structures=tuple(STRUCTURES))
    return Problem("study", spec, plan)


def small(**search: Any) -> Problem:
    spec = StudySpec.model_validate(make_study(search_space=SMALL, search={"trials": 50, **search}))
    return Problem("small", spec, Plan(shapes=(), max_parameters=9, min_fill=0, base_parameters=0, structures=PAIR))


def trial(number: int, proposal: Any, state: TrialState = TrialState.RUNNING, **values: Any) -> Observation:
    return Observation(number, state, proposal.params, proposal.point, proposal.attrs, version=number * 100, **values)


def history_of(p: Problem, trials: Any) -> History:
    return History.of(p.spec.all_objectives, trials)


def value_of(params: dict[str, Any]) -> float:
    return 1.0 - abs(params["learning_rate"] - 1e-3) * 100 - 0.1 * abs(params["r1"] - 2)


def finished(t: Observation) -> Observation:
    value = value_of(t.params)
    return replace(
        t,
        state=TrialState.COMPLETED,
        metrics={"accuracy": value, "parameters": 100.0 * t.params["r"]},
        curve=(value / 2, value),
        version=t.version + 1,
    )
