"""Effects of the structure: true where there are some, and silent where nothing can be said."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from service.domain.plan import Plan
from service.domain.records import Observation, StoredPrediction, Study
from service.domain.states import TrialState
from service.domain.study_spec import StudySpec
from service.results.effects import effects_of
from tests.conftest import make_study


def study() -> Study:
    plan = Plan(shapes=(), max_parameters=1, min_fill=0, base_parameters=1, structures=())
    return cast(Study, SimpleNamespace(spec=StudySpec.model_validate(make_study()), plan=plan))


def trials(slopes: dict[str, float], noise: float, count: int, seed: int) -> list[Observation]:
    """Trials of a linear truth over log2 of r1 and r2 and log10 of the learning rate."""
    order = np.random.default_rng(seed)
    found = []
    for number in range(count):
        params: dict[str, Any] = {
            "r1": int(2 ** order.integers(3)),
            "r2": int(2 ** order.integers(5)),
            "alpha": float(2 ** order.integers(3, 7)),
            "learning_rate": float(10 ** order.uniform(-4, -2)),
        }
        params["r"] = max(1, 64 // (params["r1"] * params["r2"]))
        value = 0.7 + sum(
            slope * (math.log10(params[n]) if n == "learning_rate" else math.log2(params[n]))
            for n, slope in slopes.items()
        )
        value += noise * (order.standard_t(5) if number % 2 else order.normal() * 0.3)
        found.append(Observation(number, TrialState.COMPLETED, params, metrics={"accuracy": value}))
    return found


def test_a_true_effect_is_found_with_its_sign_and_size() -> None:
    found = effects_of(study(), trials({"r2": 0.02, "learning_rate": -0.05}, 0.01, 40, 0), {})
    by_name = {e.parameter: e for e in found.effects}
    assert by_name["r2"].estimate == pytest.approx(0.02, abs=0.006)
    assert by_name["r2"].sentence.startswith(
        "Each doubling of r2 improved the result: +1.8 points, interval +1.6 to +2.1"
    )
    assert by_name["learning_rate"].sentence.startswith("Each tenfold learning rate worsened the result: -")
    assert by_name["r1"].sentence.startswith("Nothing can be said about r1 from these trials")
    assert "r" not in by_name, "r fills the budget, so r1 and r2 determine it"
    assert found.sentences[0] == by_name["learning_rate"].sentence
    assert len(found.sentences) == 3


def test_without_effects_few_studies_claim_one() -> None:
    """The intervals of all parameters hold together; the noise is heavy and unequal."""
    wrong = 0
    for seed in range(500):
        found = effects_of(study(), trials({}, 0.02, 30, seed), {})
        wrong += any(e.low is not None and e.high is not None and (e.low > 0 or e.high < 0) for e in found.effects)
    assert wrong / 500 <= 0.08


@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_from_few_trials_nothing_is_said(count: int) -> None:
    found = effects_of(study(), trials({"r2": 0.1}, 0.0, count, 1), {})
    assert all(e.estimate is None and "Nothing can be said" in e.sentence for e in found.effects)


def test_what_did_not_vary_is_not_mentioned() -> None:
    fixed = [
        Observation(t.number, t.state, {**t.params, "alpha": 8.0, "r1": 2}, metrics=t.metrics)
        for t in trials({"r2": 0.02}, 0.01, 40, 2)
    ]
    assert {e.parameter for e in effects_of(study(), fixed, {}).effects} == {"r2", "learning_rate"}


def test_a_prediction_is_held_against_what_was_observed() -> None:
    seen = trials({"r2": 0.05}, 0.001, 40, 3)
    structures = {(t.params["r1"], t.params["r2"], t.params["r"]) for t in seen}

    def ranking(sign: float) -> list[StoredPrediction]:
        made = [StoredPrediction(*s, 100, sign * s[1], "because") for s in structures]
        return sorted(made, key=lambda p: -p.score)

    right, wrong = effects_of(study(), seen, {"guideline": ranking(1.0), "alignment": ranking(-1.0)}).agreements
    assert right.spearman is not None
    assert right.kendall is not None
    assert wrong.spearman is not None
    assert right.spearman[0] > 0.9 > 0 > wrong.spearman[0]
    assert right.spearman[1] <= right.spearman[0] <= right.spearman[2]
    assert (right.top, wrong.hits) == (3, 0)
    assert right.hits >= 2


def test_all_values_equal_give_no_correlation_and_no_effect() -> None:
    same = [Observation(t.number, t.state, t.params, metrics={"accuracy": 0.5}) for t in trials({}, 0.0, 30, 4)]
    ranking = [StoredPrediction(t.params["r1"], t.params["r2"], t.params["r"], 1, float(t.number), "") for t in same]
    found = effects_of(study(), same, {"guideline": ranking})
    assert found.agreements[0].spearman is None
    assert all("Nothing can be said" in e.sentence for e in found.effects)


def test_marginal_means_are_adjusted_for_the_other_parameters() -> None:
    found = effects_of(study(), trials({"r2": 0.02, "learning_rate": -0.05}, 0.004, 120, 3), {})
    assert set(found.means) == {"r1", "r2", "alpha", "learning_rate", "r2/r1"}
    by_level = {level.level: level for level in found.means["r2"]}
    assert list(by_level) == ["1", "2", "4", "8", "16"]
    assert sum(level.trials for level in by_level.values()) == 120
    assert by_level["16"].mean - by_level["1"].mean == pytest.approx(0.08, abs=0.006)
    rates = found.means["learning_rate"]
    assert len(rates) == 3
    assert " to " in rates[0].level
    assert rates[0].low > rates[2].high, "a lower learning rate was better"
    ones = [level.mean for level in found.means["r1"]]
    assert max(ones) - min(ones) < 0.006


def test_intervals_of_marginal_means_hold_together() -> None:
    """The truth is the same at each level; 92 % is 2.5 standard errors below 95 % with 300 studies."""
    covered = 0
    for seed in range(300):
        found = effects_of(study(), trials({}, 0.02, 40, seed), {})
        covered += all(level.low <= 0.7 <= level.high for level in found.means["r1"])
    assert 0.92 <= covered / 300


def test_marginal_means_need_more_trials_than_terms() -> None:
    assert effects_of(study(), trials({"r2": 0.02}, 0.01, 6, 0), {}).means == {}
    same = trials({}, 0.0, 30, 0)
    assert all(math.isfinite(level.mean) for levels in effects_of(study(), same, {}).means.values() for level in levels)


def test_a_level_with_one_trial_has_no_marginal_mean() -> None:
    done = trials({"r2": 0.02}, 0.01, 40, 0)
    done[0].params["alpha"] = 256.0
    found = effects_of(study(), done, {}).means["alpha"]
    assert "256" not in {level.level for level in found}
    assert all(level.high > level.low for level in found)


def test_target_modules_that_differ_are_no_effect_of_the_sizes() -> None:
    """On all layers results are better and r2 is larger; r2 itself does nothing."""
    order = np.random.default_rng(0)
    done = []
    for number in range(60):
        wide = number % 2
        params = {
            "r1": int(2 ** order.integers(3)),
            "r2": int(2 ** (order.integers(3) + 2 * wide)),
            "r": 4,
            "alpha": 16.0,
            "learning_rate": 1e-3,
            "target_modules": "all" if wide else "attention",
        }
        value = 0.6 + 0.2 * wide + 0.005 * order.normal()
        done.append(Observation(number, TrialState.COMPLETED, params, metrics={"accuracy": value}))
    found = effects_of(study(), done, {})
    effect = next(e for e in found.effects if e.parameter == "r2")
    assert effect.low is not None
    assert effect.high is not None
    assert effect.low < 0 < effect.high
    assert effect.high - effect.low < 0.02
    means = [level.mean for level in found.means["r2"]]
    assert max(means) - min(means) < 0.02
