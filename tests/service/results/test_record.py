"""The pooled regret of a predictor: its interval covers the truth."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from service.domain.comparison import PredictorResult
from service.domain.states import VerdictKind
from service.domain.statistics import Estimate, estimate
from service.results.record import pooled


def result(regret: Estimate | None, kind: VerdictKind = VerdictKind.UNDECIDED) -> PredictorResult:
    given: dict[str, Any] = {"regret": regret, "verdict_kind": kind}
    names = ("predictor", "choice", "reason", "rank_of_winner", "ranked", "spearman", "compared_trials", "verdict")
    return PredictorResult(**{**dict.fromkeys((*names, "seeds_to_settle")), **given})


@pytest.mark.parametrize(("studies", "spread"), [(4, 0.02), (10, 0.0), (30, 0.01)])
def test_the_interval_covers_the_truth(studies: int, spread: float) -> None:
    """Of 500 teams, with as many studies each, whose true regrets have a mean of one point."""
    order = np.random.default_rng(studies * 1000 + round(spread * 1000))
    covered = 0
    for _ in range(500):
        truths = order.normal(0.01, spread, studies)
        results = [result(estimate(list(order.normal(t, 0.01, 5)))) for t in truths]
        found = pooled(results)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.01 <= found.high
    assert 0.92 <= covered / 500 <= 0.98


def test_the_draw_of_test_examples_is_no_variance_among_studies() -> None:
    order = np.random.default_rng(2)
    spreads = []
    for _ in range(40):
        results = []
        for _ in range(15):
            hard = order.normal(0.01, 0.4, 200)
            scores = [list(hard + order.normal(0, 0.01, 200)) for _ in range(3)]
            results.append(result(estimate([float(np.mean(s)) for s in scores], scores)))
        found = pooled(results)
        assert found is not None
        assert found.spread is not None
        spreads.append(found.spread)
    assert float(np.median(spreads)) < 0.012, "the examples' own error is 0.028"


def test_too_few_studies_have_a_mean_alone() -> None:
    assert pooled([]) is None
    assert pooled([result(None)]) is None
    two = pooled([result(estimate([0.01, 0.02, 0.03])), result(estimate([0.0, 0.02, 0.01]))])
    assert two is not None
    assert (two.studies, two.low, two.high) == (2, None, None)
    assert two.mean == pytest.approx(0.015)


def test_a_choice_that_the_search_found_too_counts_as_no_regret() -> None:
    seen = [result(estimate([0.01 + k / 1000, 0.02, 0.03])) for k in range(3)]
    same = result(cast(Estimate, None), VerdictKind.SAME)
    without, with_same = pooled(seen), pooled([*seen, same])
    assert without is not None
    assert with_same is not None
    assert with_same.studies == 4
    assert 0 < with_same.mean < without.mean
