"""Successive halving with promotion, against the algorithm of the ASHA paper written a second time."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from service.domain.records import Observation
from service.domain.states import TrialState
from service.domain.study_spec import Direction
from service.search.halving import Bracket, best_at, best_first, bracket_count, hyperband_bracket
from service.search.policy import Verdict
from service.search.pruners import Halving
from tests.contracts.problems import problem


def halving(**search: Any) -> Halving:
    found = Halving.of(problem({"training": {"epochs": 9}}, **{"pruner": "asha", **search}).spec)
    assert found is not None
    return found


def seen(number: int, *curve: float, state: TrialState = TrialState.RUNNING) -> Observation:
    return Observation(number, state, {}, curve=curve)


def test_rungs_are_powers_of_the_factor() -> None:
    bracket = Bracket(2, 3)
    assert [e for e in range(1, 60) if bracket.is_rung(e)] == [2, 6, 18, 54]
    assert [bracket.last_rung(e) for e in (0, 1, 2, 5, 6, 53)] == [None, None, 2, 2, 6, 18]


@pytest.mark.parametrize(
    ("low", "high", "factor", "count"),
    [(1, 243, 3, 6), (1, 1000, 10, 4), (1, 9, 3, 3), (1, 8, 3, 2), (1, 1, 3, 1), (5, 4, 3, 1), (2, 1024, 2, 10)],
)
def test_hyperband_has_as_many_brackets_as_its_paper_says(low: int, high: int, factor: int, count: int) -> None:
    """In floating point the logarithm of 243 to the base 3 is below 5, which loses a bracket."""
    assert bracket_count(low, high, factor) == count


def test_hyperband_shares_trials_among_its_brackets_as_its_paper_does() -> None:
    brackets = [hyperband_bracket(1, 9, 3, 0, number) for number in range(6000)]
    shares = [sum(b.first == first for b in brackets) / 6000 for first in (1, 3, 9)]
    assert shares == pytest.approx([9 / 17, 5 / 17, 3 / 17], abs=0.02)
    assert [hyperband_bracket(1, 9, 3, 0, number) for number in range(50)] == brackets[:50]
    assert [hyperband_bracket(1, 9, 3, 1, number) for number in range(50)] != brackets[:50]


def test_of_n_trials_at_a_rung_the_best_third_continues() -> None:
    rule, trials = halving(), [seen(0, 0.9)]
    assert rule.judge(trials, 0, 1) is Verdict.WAIT  # of one trial, none
    trials += [seen(1, 0.8), seen(2, 0.7)]
    assert [rule.judge(trials, number, 1) for number in range(3)] == [Verdict.CONTINUE, Verdict.WAIT, Verdict.WAIT]
    assert rule.judge(trials, 0, 2) is Verdict.CONTINUE  # not a rung


def test_a_trial_that_waits_is_promoted_once_later_values_put_it_among_the_best() -> None:
    rule = halving()
    held = [seen(n, v, state=TrialState.WAITING) for n, v in enumerate((0.5, 0.4))]
    assert rule.promotions(held) == []
    assert rule.promotions([*held, seen(2, 0.1)]) == [0]
    assert rule.promotions([*held, *[seen(n, 0.1) for n in range(2, 6)]]) == [0, 1]


def test_the_end_of_a_search_promotes_as_many_as_have_to_finish() -> None:
    rule = halving()
    trials = [seen(n, v, state=TrialState.WAITING) for n, v in enumerate((0.5, 0.9, 0.7, 0.1))]
    assert rule.last_promotions(trials) == [1, 2, 0]
    trials[1] = replace(trials[1], state=TrialState.COMPLETED, curve=(0.9,) * 9)
    trials[2] = replace(trials[2], state=TrialState.COMPLETED, curve=(0.9,) * 9)
    assert rule.last_promotions(trials) == [0]
    trials[0] = replace(trials[0], state=TrialState.COMPLETED, curve=(0.9,) * 9)
    assert rule.last_promotions(trials) == []


def test_a_search_of_as_many_trials_as_have_to_finish_holds_none() -> None:
    assert halving(trials=3).judge([seen(0, 0.1)], 0, 1) is Verdict.CONTINUE
    assert halving(trials=3, finished=0).judge([seen(0, 0.1)], 0, 1) is Verdict.WAIT


def test_equal_values_rank_by_number_and_values_that_are_not_finite_last() -> None:
    trials = [seen(0, math.nan), seen(1, 0.5), seen(2, 0.5), seen(3, -math.inf)]
    for direction in Direction:
        assert best_at(trials, 1, 2, direction) == {1, 2}
    assert best_first(trials, Direction.MINIMIZE) == [1, 2, 0, 3]
    assert best_first([seen(0, 0.9), seen(1, 0.1, 0.2)], Direction.MAXIMIZE) == [1, 0]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_rule_promotes_what_algorithm_2_of_the_paper_promotes(direction: str) -> None:
    """A worker a trial: each job runs to the next rung, then the worker asks for a job as in ``get_job``."""
    order = random.Random(4)
    both = {"training": {"epochs": 9}, "objectives": [{"metric": "accuracy", "direction": direction}]}
    rule = Halving.of(problem(both, pruner="asha").spec)
    assert rule is not None
    sign = -1 if direction == "maximize" else 1
    rungs: list[dict[int, float]] = [{}, {}]
    promoted: list[set[int]] = [set(), set()]
    trials: dict[int, Observation] = {}
    for _ in range(80):
        theirs = None
        for k in (1, 0):
            top = sorted(rungs[k], key=lambda n: (sign * rungs[k][n], n))[: len(rungs[k]) // 3]
            able = [n for n in top if n not in promoted[k]]
            if able:
                theirs = (able[0], k)
                break
        ours = rule.promotions(list(trials.values()))
        if theirs is None:
            assert ours == []
            number = len(trials)
            trials[number] = seen(number, order.random(), state=TrialState.WAITING)
            rungs[0][number] = trials[number].curve[0]
            continue
        number, k = theirs
        assert ours[0] == number
        promoted[k].add(number)
        length = (3, 9)[k]
        curve = trials[number].curve + tuple(order.random() for _ in range(length - len(trials[number].curve)))
        ended = TrialState.COMPLETED if length == 9 else TrialState.WAITING
        trials[number] = replace(trials[number], curve=curve, state=ended)
        if length == 3:
            rungs[1][number] = curve[2]
    assert len(promoted[0]) > 10
    assert len(promoted[1]) > 2
