"""Verdicts on simulated truths: what is claimed wrongly, and whether the stated number of seeds settles a question."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from service.domain.states import VerdictKind
from service.domain.statistics import Estimate, estimate, paired_difference
from service.domain.verdicts import judge, seeds_to_settle

STUDIES = 600
MARGIN = 0.005


def differences(truth: float, seeds: int, noise: float, examples: int = 400, shared: float = 0.0) -> Iterator[Estimate]:
    """Studies of two candidates whose true difference in accuracy is ``truth``.

    ``noise`` is the spread over seeds of each, ``shared`` the part of it that both share; the test examples are drawn
    anew for each study.
    """
    order = np.random.default_rng([round(abs(truth) * 1e5), seeds, int(truth < 0)])
    for _ in range(STUDIES):
        hard = order.normal(size=examples)
        both = order.normal(scale=shared, size=(seeds, 1))
        scores = []
        for level in (truth, 0.0):
            seen = level + both + order.normal(scale=noise, size=(seeds, 1))
            # How often an example is got right: easier ones more often, and by ``seen`` more often on average.
            chance = np.clip(0.8 + 0.15 * hard + seen, 0, 1)
            scores.append((order.random((seeds, examples)) < chance).astype(float))
        first, second = scores
        yield paired_difference(first.mean(axis=1), second.mean(axis=1), first, second)  # type: ignore[arg-type]


def shares(found: Iterator[Estimate], margin: float = MARGIN) -> dict[VerdictKind, float]:
    kinds = [judge(d, margin) for d in found]
    return {kind: kinds.count(kind) / len(kinds) for kind in VerdictKind}


@pytest.mark.parametrize(("seeds", "noise", "shared"), [(3, 0.01, 0.0), (5, 0.02, 0.0), (8, 0.01, 0.02)])
def test_without_a_difference_few_studies_name_a_winner(seeds: int, noise: float, shared: float) -> None:
    found = shares(differences(0.0, seeds, noise, shared=shared))
    # 5 % in truth; two standard errors of a simulation of 600.
    assert found[VerdictKind.BETTER] + found[VerdictKind.WORSE] <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / STUDIES)


@pytest.mark.parametrize(("seeds", "noise"), [(3, 0.002), (5, 0.005), (10, 0.01)])
def test_a_difference_beyond_the_margin_is_rarely_called_equal(seeds: int, noise: float) -> None:
    assert shares(differences(0.02, seeds, noise, examples=2000), margin=0.015)[VerdictKind.EQUAL] <= 0.05
    assert shares(differences(-0.02, seeds, noise, examples=2000), margin=0.015)[VerdictKind.EQUAL] <= 0.05


def test_a_large_difference_is_found_and_its_direction_is_right() -> None:
    ahead, behind = (shares(differences(truth, 5, 0.01, examples=2000)) for truth in (0.08, -0.08))
    assert ahead[VerdictKind.BETTER] >= 0.95
    assert behind[VerdictKind.WORSE] >= 0.95


def test_equal_candidates_are_called_equal_where_the_data_suffices() -> None:
    order = np.random.default_rng(1)
    found = [judge(estimate(order.normal(0, 0.002, 12)), MARGIN) for _ in range(STUDIES)]
    assert found.count(VerdictKind.EQUAL) / STUDIES >= 0.95


@pytest.mark.parametrize("truth", [0.0, 0.008, 0.02])
def test_the_stated_number_of_seeds_settles_three_of_four_studies(truth: float) -> None:
    """With the true mean and spread, and with a part of the interval that seeds do not shrink."""
    spread, examples = 0.01, 0.001
    width = math.hypot(2.776 * spread / math.sqrt(5), 1.96 * examples)
    stated = seeds_to_settle(Estimate(truth, spread, truth - width, truth + width, 5), MARGIN)
    assert stated is not None
    order = np.random.default_rng(0)
    settled = 0
    for _ in range(STUDIES):
        values = truth + order.normal(0, examples) + order.normal(0, spread, stated)
        plain = estimate(values)
        assert plain.low is not None
        half = math.hypot(plain.mean - plain.low, 1.96 * examples)
        seen = Estimate(plain.mean, plain.spread, plain.mean - half, plain.mean + half, stated)
        settled += judge(seen, MARGIN) is not VerdictKind.UNDECIDED
    assert settled / STUDIES >= 0.75


def test_seeds_cannot_settle_what_the_test_split_leaves_open() -> None:
    half = math.hypot(2.776 * 0.01 / math.sqrt(5), 0.05)
    assert seeds_to_settle(Estimate(0.01, 0.01, 0.01 - half, 0.01 + half, 5), MARGIN) is None


@pytest.mark.parametrize(
    ("mean", "half", "seeds", "kind"),
    [
        (0.03, 0.01, 5, VerdictKind.BETTER),
        (-0.03, 0.01, 5, VerdictKind.WORSE),
        (0.003, 0.001, 5, VerdictKind.EQUAL),
        (0.0, 0.0, 3, VerdictKind.EQUAL),
        (0.004, 0.01, 5, VerdictKind.UNDECIDED),
        (0.03, 0.01, 2, VerdictKind.TOO_FEW_SEEDS),
    ],
)
def test_kinds(mean: float, half: float, seeds: int, kind: VerdictKind) -> None:
    assert judge(Estimate(mean, 0.01, mean - half, mean + half, seeds), MARGIN) is kind
    assert judge(Estimate(mean, 0.01, None, None, seeds), MARGIN) is VerdictKind.TOO_FEW_SEEDS
