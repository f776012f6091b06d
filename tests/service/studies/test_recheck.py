"""At the end of a search its best configurations are trained again, and the best mean wins."""

from __future__ import annotations

from typing import Any

import pytest

from service.db.trial_counts import Counts
from service.domain.states import TrialPhase
from service.studies.progress import search_trials
from tests.conftest import Api, make_study

RECHECK = {"top": 2, "seeds": 2}


def searched(api: Api, values: list[float], repeated: Any, **changes: Any) -> tuple[dict[str, Any], list[Any]]:
    """A study whose search trials get ``values`` and whose others get what ``repeated`` says; and its trials."""
    search = {"trials": len(values), "concurrency": 1, "recheck": RECHECK, **changes.pop("search", {})}
    study = api.create(search=search, **changes)
    left = iter(values)
    done = api.run_all(lambda trial: next(left) if trial["phase"] == "search" else repeated(trial))
    return api.call("GET", f"/studies/{study['id']}").json(), done


def comparison(api: Api, study: dict[str, Any]) -> dict[str, Any]:
    return api.call("GET", f"/studies/{study['id']}/comparison").json()


def test_a_lucky_trial_loses_to_one_whose_mean_is_better(api: Api) -> None:
    study = api.create(search={"trials": 3, "concurrency": 1, "recheck": RECHECK})
    first = api.lease()
    assert first is not None
    lucky = first["trial"]["params"]
    api.finish(first, value=0.9)
    values = {1: 0.85, 2: 0.3}
    done = api.run_all(
        lambda trial: (
            values[trial["number"]] if trial["phase"] == "search" else 0.5 if trial["params"] == lucky else 0.8
        )
    )
    assert [t["phase"] for t in done] == ["search"] * 2 + ["recheck"] * 4
    best = comparison(api, study)["best_trial"]
    assert (best["number"], best["value"], best["runs"]) == (1, 0.85, 3)
    assert best["mean"] == pytest.approx((0.85 + 0.8 + 0.8) / 3)


def test_the_same_fresh_seeds_repeat_every_configuration(api: Api) -> None:
    study, done = searched(api, [0.5, 0.7, 0.6], lambda trial: 0.6, compare={"seeds": 2, "learning_rate": "shared"})
    seeds = {phase: sorted({t["seed"] for t in done if t["phase"] == phase}) for phase in {t["phase"] for t in done}}
    assert len(seeds["recheck"]) == 2
    assert not set(seeds["recheck"]) & {*seeds["search"], *seeds["confirmation"]}
    repeated = [t for t in done if t["phase"] == "recheck"]
    assert [t["params"] for t in repeated] == [done[1]["params"]] * 2 + [done[2]["params"]] * 2
    assert study["recheck"] == {"planned": 4, "finished": 4, "running": 0, "queued": 0, "waiting": 0}
    assert study["search"]["planned"] == 3


def test_a_configuration_whose_repetition_diverges_comes_last(api: Api) -> None:
    study = api.create(search={"trials": 2, "concurrency": 1, "recheck": {"top": 2, "seeds": 1}})
    for value in (0.9, 0.8):
        lease = api.lease()
        assert lease is not None
        api.finish(lease, value=value)
    failed = api.lease()
    assert failed is not None
    api.finish(failed, "infeasible", None, failure={"kind": "diverged", "message": "the loss became nan"})
    fine = api.lease()
    assert fine is not None
    api.finish(fine, value=0.2)
    assert comparison(api, study)["best_trial"]["number"] == 1
    assert api.call("GET", f"/studies/{study['id']}").json()["state"] == "completed"


def test_a_minimised_metric_is_rechecked_from_below(api: Api) -> None:
    objectives = [{"metric": "loss", "direction": "minimize"}]
    study = api.create(objectives=objectives, search={"trials": 3, "concurrency": 1, "recheck": RECHECK})
    for number, value in enumerate((0.9, 0.3, 0.2)):
        lease = api.lease()
        assert lease is not None
        assert lease["trial"]["number"] == number
        api.finish(lease, metrics={"loss": value})
    done = []
    while (lease := api.lease()) is not None:
        done.append(lease["trial"])
        api.finish(lease, metrics={"loss": 0.25})
    assert len(done) == 4
    best = comparison(api, study)["best_trial"]
    assert best["number"] == 2
    assert best["mean"] == pytest.approx((0.2 + 0.25 + 0.25) / 3)


def test_an_extended_search_repeats_only_what_is_new_among_the_best(api: Api) -> None:
    study, _ = searched(api, [0.5, 0.7, 0.6], lambda trial: 0.6)
    assert study["state"] == "completed"
    answer = api.call("PATCH", f"/studies/{study['id']}", json={"trials": 4})
    assert answer.status_code == 200, answer.text
    more = api.run_all(lambda trial: 0.95 if trial["phase"] == "search" else 0.9)
    assert [t["phase"] for t in more] == ["search", "recheck", "recheck"]
    assert {str(t["params"]) for t in more} == {str(more[0]["params"])}
    assert comparison(api, study)["best_trial"]["number"] == more[0]["number"]


@pytest.mark.parametrize(
    ("values", "recheck", "expected"),
    [([0.5, 0.6], "none", 0), ([0.5], RECHECK, 0), ([0.5, 0.6, 0.7], {"top": 3, "seeds": 1}, 3)],
)
def test_only_a_choice_is_rechecked(api: Api, values: list[float], recheck: Any, expected: int) -> None:
    study, done = searched(api, values, lambda trial: 0.5, search={"recheck": recheck})
    assert sum(t["phase"] == "recheck" for t in done) == expected
    assert study["state"] == "completed"


def test_rechecks_do_not_count_as_search_trials(api: Api) -> None:
    study, _ = searched(api, [0.5, 0.6], lambda trial: 0.5)
    with api.ctx.db.read() as session:
        counts = Counts(session).of_studies([study["id"]])[study["id"]]
    assert search_trials(counts) == 2
    assert sum(n for (phase, _), n in counts.items() if phase is TrialPhase.RECHECK) == 4


@pytest.mark.parametrize(
    ("recheck", "pointer", "words"),
    [
        ("all", "#/search/recheck", "none"),
        (3, "#/search/recheck", "write none, or"),
        ({"top": 1}, "#/search/recheck/top", "greater than or equal to 2"),
        ({"seeds": 0}, "#/search/recheck/seeds", "greater than or equal to 1"),
        ({"best": 3}, "#/search/recheck/best", "unknown key"),
    ],
)
def test_a_wrong_recheck_is_named(api: Api, recheck: Any, pointer: str, words: str) -> None:
    answer = api.call("POST", "/studies", json=make_study(search={"recheck": recheck}))
    assert answer.status_code == 422
    assert any(e["pointer"] == pointer and words in e["detail"] for e in answer.json()["errors"]), answer.text


def test_rechecks_are_on_unless_a_study_says_none(api: Api) -> None:
    body = make_study()
    del body["search"]["recheck"]
    study = api.call("POST", "/studies", json=body).json()
    assert study["spec"]["search"]["recheck"] == {"top": 3, "seeds": 2}


def test_a_recheck_that_was_cut_off_crowns_nobody(api: Api) -> None:
    """The best value's repetitions were cancelled; the second best's one completed."""
    study = api.create(search={"trials": 2, "concurrency": 4, "recheck": {"top": 2, "seeds": 1}})
    for value in (0.92, 0.85):
        lease = api.lease()
        assert lease is not None
        api.finish(lease, value=value)
    first, second = api.lease("a"), api.lease("b")
    assert first is not None
    assert second is not None
    api.call("POST", f"/trials/{first['trial']['id']}/stop")
    api.finish(first, "cancelled", None)
    api.finish(second, value=0.85)
    best = comparison(api, study)["best_trial"]
    assert (best["number"], best["runs"]) == (0, 1)
    assert api.call("GET", f"/studies/{study['id']}").json()["state"] == "completed"
    assert api.lease() is None, "a repetition that was stopped is not queued again"


def test_a_new_best_of_an_extended_search_is_shown_before_its_recheck(api: Api) -> None:
    study, _ = searched(api, [0.5, 0.7], lambda trial: 0.65)
    assert comparison(api, study)["best_trial"]["runs"] == 3
    api.call("PATCH", f"/studies/{study['id']}", json={"trials": 3})
    lease = api.lease()
    assert lease is not None
    api.finish(lease, value=0.9)
    best = comparison(api, study)["best_trial"]
    assert (best["number"], best["runs"], best["mean"]) == (lease["trial"]["number"], 1, 0.9)


def test_a_failed_repetition_that_is_retried_is_confirmed_again(api: Api) -> None:
    search = {"trials": 2, "concurrency": 1, "retries": 0, "recheck": {"top": 2, "seeds": 1}}
    study = api.create(search=search, compare={"seeds": 1, "learning_rate": "shared"})
    failed: dict[str, Any] = {}
    while (lease := api.lease()) is not None:
        trial = lease["trial"]
        if trial["phase"] == "recheck" and not failed:
            failed = trial
            api.finish(lease, "failed", None, failure={"kind": "error", "message": "x"})
        else:
            api.finish(lease, value=0.5 + 0.01 * trial["number"])
    assert api.call("POST", f"/trials/{failed['id']}/retry").status_code == 200
    assert api.call("GET", f"/studies/{study['id']}").json()["phase"] == "search"
    api.run_all(lambda trial: 0.99 if trial["phase"] == "recheck" else 0.6)
    found = comparison(api, study)
    assert str(found["best_trial"]["number"]) in found["candidates"][0]["title"]


def test_all_replicates_count_in_the_mean(api: Api) -> None:
    """One replicate of the first configuration was lucky; all three and the repetition make its mean."""
    search = {"trials": 6, "concurrency": 1, "replicates": 3, "sampler": "grid", "recheck": {"top": 2, "seeds": 1}}
    space = {"r1": 2, "r2": 4, "r": 4, "alpha": {"choices": [8, 16]}, "learning_rate": {"choices": [1e-3]}}
    study = api.create(search=search, search_space=space)
    luck = iter([0.95])

    def value(trial: dict[str, Any]) -> float:
        lucky = trial["params"]["alpha"] == 8
        return (next(luck, 0.8) if trial["phase"] == "search" else 0.8) if lucky else 0.84

    done = api.run_all(value)
    assert len(done) == 8
    best = comparison(api, study)["best_trial"]
    assert (best["params"]["alpha"], best["runs"]) == (16, 4)
