"""Seeds are added in planned looks until the primary question is decided, and the intervals hold over all of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from service.domain.states import VerdictKind
from service.domain.statistics import paired_difference
from service.domain.study_spec import SeedsSpec
from service.domain.verdicts import judge
from service.studies.differences import adjusted, confidence_at, looks
from tests.conftest import Api, make_study

STUDIES = 600
SEEDS = SeedsSpec(first=3, most=20)
DECIDED = (VerdictKind.BETTER, VerdictKind.WORSE, VerdictKind.EQUAL)


def test_looks_are_spread_from_the_first_to_the_most_seeds() -> None:
    assert looks(SEEDS) == [3, 9, 14, 20]
    assert looks(SeedsSpec(first=3, most=4)) == [3, 4]
    assert looks(SeedsSpec(first=5, most=5)) == [5]
    assert looks(7) == [7]


def test_the_error_probability_is_divided_over_the_looks() -> None:
    assert sum(1 - confidence_at(SEEDS, n) for n in looks(SEEDS)) == pytest.approx(0.05)
    assert confidence_at(5, 5) == pytest.approx(0.95)
    assert 1 - adjusted(0.95, 4) == pytest.approx(0.0125)


def decide(truth: float, order: np.random.Generator, noise: str, margin: float = 0.005) -> tuple[VerdictKind, int]:
    """One study with looks: its verdict, and the seeds that it took."""
    kind, reached = VerdictKind.UNDECIDED, 0
    hard = order.normal(0, 0.3, 400)
    draws: list[np.ndarray] = []
    for reached in looks(SEEDS):
        while len(draws) < reached:
            shared = order.normal(0, 0.02)
            step = order.standard_t(3, 2) * 0.008 if noise == "heavy" else order.normal(0, 0.01, 2)
            chance = np.clip(0.75 + hard + shared + step[:, None] + np.array([[truth], [0.0]]), 0.02, 0.98)
            draws.append((order.random((2, 400)) < chance).astype(float))
        scores = np.array(draws)
        first, second = scores[:, 0], scores[:, 1]
        found = paired_difference(
            list(first.mean(axis=1)), list(second.mean(axis=1)), first.tolist(), second.tolist(),
            confidence_at(SEEDS, reached),
        )  # fmt: skip
        kind = judge(found, margin)
        if kind in DECIDED:
            break
    return kind, reached


@pytest.mark.parametrize("noise", ["normal", "heavy"])
def test_over_all_looks_at_most_one_study_in_twenty_names_a_winner_without_a_difference(noise: str) -> None:
    order = np.random.default_rng(5)
    found = [decide(0.0, order, noise)[0] for _ in range(STUDIES)]
    wrong = sum(kind in (VerdictKind.BETTER, VerdictKind.WORSE) for kind in found) / STUDIES
    assert wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / STUDIES)


def test_over_all_looks_a_difference_beyond_the_margin_is_rarely_called_equal() -> None:
    order = np.random.default_rng(6)
    found = [decide(0.02, order, "normal", margin=0.018)[0] for _ in range(STUDIES)]
    assert found.count(VerdictKind.EQUAL) / STUDIES <= 0.05


def test_a_large_difference_takes_fewer_seeds_than_the_most() -> None:
    order = np.random.default_rng(7)
    found = [decide(0.1, order, "normal") for _ in range(200)]
    assert sum(kind is VerdictKind.BETTER for kind, _ in found) >= 190
    assert float(np.mean([reached for _, reached in found])) <= 12


def test_further_candidates_together_name_few_winners_without_a_difference() -> None:
    """Four candidates of equal worth beside the best found: the chance of any wrong verdict stays at 5 %."""
    order = np.random.default_rng(8)
    wrong = 0
    for _ in range(STUDIES):
        best = order.normal(0, 0.01, 5)
        kinds = [
            judge(paired_difference(best.tolist(), order.normal(0, 0.01, 5).tolist(), confidence=adjusted(0.95, 4)), 0)
            for _ in range(4)
        ]
        wrong += any(kind in (VerdictKind.BETTER, VerdictKind.WORSE) for kind in kinds)
    assert wrong / STUDIES <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / STUDIES)


def confirmed(api: Api, gap: float, noise: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A study with looks whose best is ahead of all others by ``gap`` on test, and its confirmation runs."""
    compare = {"seeds": {"first": 3, "most": 9}, "learning_rate": "shared", "baselines": ["lora"]}
    study = api.create(search={"trials": 4, "concurrency": 1}, compare=compare)
    done = []
    best: dict[str, Any] = {}
    while (lease := api.lease()) is not None:
        trial = lease["trial"]
        value = 0.5 + 0.01 * trial["number"]
        if trial["phase"] == "confirmation":
            best = best or trial["params"]
            own = sum((3 * k + 2) * float(v) for k, (_, v) in enumerate(sorted(trial["params"].items())))
            wobble = noise * math.sin(17.0 * trial["seed"] + own)
            value = 0.7 + wobble + gap * (trial["params"] == best)
            done.append(trial)
        api.finish(lease, value=value, resources={"validation": {"accuracy": value - 0.1}})
    return api.call("GET", f"/studies/{study['id']}").json(), done


def test_a_decided_question_takes_no_more_seeds(api: Api) -> None:
    study, runs = confirmed(api, 0.2, 0.0001)
    assert study["state"] == "completed"
    assert {t["seed"] for t in runs} == {1, 2, 3}
    found = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert found["primary"] == "guideline"
    assert found["answer"].startswith("Searching beat the guideline at the winner's learning rate: +20.0 points")
    assert "over all looks" in found["answer"]


def test_an_open_question_takes_seeds_up_to_the_most_for_every_candidate(api: Api) -> None:
    study, runs = confirmed(api, 0.0, 0.05)
    assert study["state"] == "completed"
    assert {t["seed"] for t in runs} == set(range(1, 10))
    found = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert [(c["finished"], c["planned"]) for c in found["candidates"]] == [(9, 9)] * len(found["candidates"])
    assert found["predictors"][0]["verdict_kind"] == "undecided"
    assert any("looks at 3, 5, 7, 9" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("seeds", "pointer", "words"),
    [
        ({"first": 2}, "#/compare/seeds/first", "greater than or equal to 3"),
        ({"first": 9, "most": 4}, "#/compare/seeds", "first=9 is above most=4"),
        ({"firts": 3}, "#/compare/seeds/firts", "unknown key"),
        ("five", "#/compare/seeds", "write a number from 0 to 100"),
        (True, "#/compare/seeds", "write a number from 0 to 100"),
        (101, "#/compare/seeds", "less than or equal to 100"),
    ],
)
def test_wrong_seeds_are_named(api: Api, seeds: Any, pointer: str, words: str) -> None:
    answer = api.call("POST", "/studies", json=make_study(compare={"seeds": seeds}))
    assert answer.status_code == 422
    assert any(e["pointer"] == pointer and words in e["detail"] for e in answer.json()["errors"]), answer.text
