"""The predictors' ratings as a prior on structures: they guide the first proposals and fade."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.db.studies import Studies
from service.domain.records import Observation
from service.domain.states import TrialState
from service.search.history import History
from service.search.optuna_policy import OptunaPolicy
from service.search.policy import Problem
from tests.conftest import Api, make_study
from tests.contracts.problems import problem
from tests.service.helpers import post, study_of


def rated(best: int, **search: Any) -> Problem:
    """A problem in which one pair is rated far above all others."""
    made = problem(sampler="mfgp", **{"prior": "predictors", **search})
    count = len(made.plan.structures)
    ratings = tuple(1.0 if k == best else 0.01 for k in range(count))
    return replace(made, plan=made.plan.model_copy(update={"prior": ratings}))


def proposals(made: Problem, values: dict[int, float], count: int) -> list[int]:
    """The pairs that are proposed for the next trials after ``count`` uninformative ones, each time anew."""
    policy = OptunaPolicy()
    history = History(made.spec.all_objectives)
    for number in range(count):
        proposal = policy.propose(made, history, number)
        assert proposal is not None
        value = 0.5 + values.get(proposal.point["structure"], 0.0) + number % 3 / 1000
        history.update(
            [
                Observation(
                    number,
                    TrialState.COMPLETED,
                    proposal.params,
                    proposal.point,
                    metrics={"accuracy": value},
                    version=number,
                )
            ]
        )
    found = []
    for k in range(4):
        proposal = policy.propose(made, history, count + k)
        assert proposal is not None
        found.append(proposal.point["structure"])
    return found


def test_while_little_is_known_the_rated_pair_is_proposed_more_often() -> None:
    with_prior = proposals(rated(5), {}, 4).count(5)
    without = proposals(rated(5, prior="none"), {}, 4).count(5)
    assert with_prior > without


def test_what_was_seen_outweighs_a_wrong_prior() -> None:
    """Pair 1 is better by far, and the rating says 5."""
    found = proposals(rated(5), {1: 0.3}, 24)
    assert found.count(5) <= 1


def test_without_a_prior_ratings_change_nothing() -> None:
    made = rated(5, prior="none")
    plain = replace(made, plan=made.plan.model_copy(update={"prior": ()}))
    assert proposals(made, {}, 8) == proposals(plain, {}, 8)


def test_a_study_keeps_the_ratings_of_its_predictors(api: Api) -> None:
    body = make_study(compare={"predictors": ["guideline"]})
    study = post(api, "/studies", json=body).json()
    with api.ctx.db.read() as session:
        plan = Studies(session).get(study["id"]).plan
    assert len(plan.prior) == len(plan.structures)
    best = plan.structures[plan.prior.index(max(plan.prior))]
    first = study["predictions"][0]["best"][0]
    assert (best.r1, best.r2) == (first["r1"], first["r2"])
    none = post(api, "/studies", json=make_study(compare={"predictors": [], "seeds": 0})).json()
    with api.ctx.db.read() as session:
        assert Studies(session).get(none["id"]).plan.prior == ()
    assert study_of(api, study)["spec"]["search"]["prior"] == "none", "it is for who asks for it"


def test_a_prior_that_is_none_of_the_two_is_refused(api: Api) -> None:
    (fault,) = post(api, "/studies", json=make_study(search={"prior": "guideline"})).json()["errors"]
    assert fault["pointer"] == "#/search/prior"
    assert "'predictors' or 'none'" in fault["detail"]
