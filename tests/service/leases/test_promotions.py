"""Trials that wait at a rung of successive halving: held with a checkpoint, continued or pruned."""

from __future__ import annotations

from typing import Any

import pytest

from service.context.context import Context
from service.db.checks import check
from service.db.events import Events
from tests.conftest import Api, FakeClock


def study_of(api: Api, trials: int = 9, epochs: int = 9, **search: Any) -> dict[str, Any]:
    asha = {"sampler": "random", "pruner": "asha", "trials": trials, "concurrency": 9, "finished": 0, **search}
    return api.create(search=asha, training={"epochs": epochs})


def evaluate(api: Api, lease: dict[str, Any], *values: float, first: int = 1, total: int | None = None) -> Any:
    """Report evaluations, then a checkpoint after the last one."""
    last = first + len(values) - 1
    body = {
        "reports": [{"step": first + k, "metrics": {"accuracy": v}} for k, v in enumerate(values)],
        "checkpoint": f"artifacts/{lease['trial']['number']}/{last}",
        **({} if total is None else {"total_steps": total}),
    }
    response = api.call("POST", f"/leases/{lease['id']}/reports", "worker", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def leased(api: Api, runner: str = "runner-1") -> dict[str, Any]:
    lease = api.lease(runner)
    assert lease is not None
    return lease


def trials_of(api: Api, study: dict[str, Any]) -> list[dict[str, Any]]:
    return api.call("GET", f"/studies/{study['id']}/trials", params={"limit": 200}).json()["items"]


def states(api: Api, study: dict[str, Any]) -> list[str]:
    return [t["state"] for t in trials_of(api, study)]


def hold(api: Api, value: float) -> dict[str, Any]:
    """Run a new trial to its first rung, where it is told to wait."""
    lease = leased(api)
    said = evaluate(api, lease, value)
    assert (said["directive"], said["reason"]) == ("stop", "waiting")
    assert api.finish(lease, "released", value).json()["trial_state"] == "waiting"
    return lease


def test_a_trial_waits_with_its_checkpoint_and_continues_once_it_is_among_the_best(api: Api, ctx: Context) -> None:
    study = study_of(api)
    first = hold(api, 0.5)
    hold(api, 0.4)
    progress = api.call("GET", f"/studies/{study['id']}").json()["search"]
    assert (progress["waiting"], progress["finished"], progress["running"]) == (2, 0, 0)
    third = leased(api)
    assert third["trial"]["number"] == 2
    assert evaluate(api, third, 0.1)["reason"] == "waiting"
    # The third value makes the first trial the best of three, before the third trial has even stopped.
    assert states(api, study) == ["queued", "waiting", "running"]
    again = leased(api, "runner-2")
    assert again["trial"]["id"] == first["trial"]["id"]
    assert (again["trial"]["attempt"], again["trial"]["checkpoint"]) == (2, "artifacts/0/1")
    api.finish(third, "released", 0.1)
    # It goes on with its curve: evaluation 3 is its next rung, where it is the first and so waits again.
    assert evaluate(api, again, 0.6, first=2)["directive"] == "continue"
    assert evaluate(api, again, 0.7, first=3)["reason"] == "waiting"
    curve = api.call("GET", f"/trials/{first['trial']['id']}/metrics").json()["items"]
    assert [point["value"] for point in curve] == [0.5, 0.6, 0.7]
    assert check(ctx.db) == []


def test_a_promotion_that_is_due_when_its_trial_stops_is_made_then(api: Api) -> None:
    """The best trial is told to wait; two worse results come before its runner has stopped."""
    study = study_of(api)
    best, *others = [leased(api, f"runner-{k}") for k in range(3)]
    assert evaluate(api, best, 0.9)["reason"] == "waiting"
    for other in others:
        evaluate(api, other, 0.1)
    assert states(api, study)[0] == "running"
    assert api.finish(best, "released", 0.9).status_code == 200
    assert states(api, study)[0] == "queued"


def test_promotions_come_before_new_configurations(api: Api) -> None:
    study_of(api)
    for value in (0.5, 0.4, 0.3):
        hold(api, value)
    assert leased(api)["trial"]["number"] == 0
    assert leased(api)["trial"]["number"] == 3


def test_at_the_end_of_the_search_the_trials_that_wait_are_pruned(api: Api, ctx: Context) -> None:
    study = study_of(api, trials=4, epochs=2)
    for value in (0.3, 0.9, 0.4):
        hold(api, value)
    best = leased(api)
    assert best["trial"]["number"] == 1
    assert evaluate(api, best, 0.95, first=2)["directive"] == "continue"
    api.finish(best, "completed", 0.95)
    hold(api, 0.1)
    assert states(api, study) == ["pruned", "completed", "pruned", "pruned"]
    assert api.call("GET", f"/studies/{study['id']}").json()["state"] == "completed"
    assert check(ctx.db) == []


def test_a_search_ends_with_as_many_completed_trials_as_it_asks_for(api: Api) -> None:
    study = study_of(api, trials=4, epochs=2, finished=2)
    for value in (0.3, 0.9, 0.4):
        hold(api, value)
    best = leased(api)
    evaluate(api, best, 0.95, first=2)
    api.finish(best, "completed", 0.95)
    hold(api, 0.1)
    # One has completed and nothing is left to start, so the next best continues although it is not among the third.
    assert states(api, study) == ["waiting", "completed", "queued", "waiting"]
    second = leased(api)
    api.finish(second, "completed", 0.5)
    assert states(api, study) == ["pruned", "completed", "completed", "pruned"]
    notes = api.call("GET", f"/studies/{study['id']}/comparison").json()["notes"]
    assert not [n for n in notes if "checkpoint" in n]


@pytest.mark.parametrize("how", ["released", "cancelled"])
def test_a_trial_without_a_checkpoint_is_pruned_instead(api: Api, how: str) -> None:
    study = study_of(api)
    lease = leased(api)
    assert api.report(lease, 0.5).json()["reason"] == "waiting"
    assert api.finish(lease, how, 0.5).json()["trial_state"] == "pruned"
    assert trials_of(api, study)[0]["stop_reason"] == "pruned"
    notes = api.call("GET", f"/studies/{study['id']}/comparison").json()["notes"]
    (note,) = [n for n in notes if "checkpoint" in n]
    assert note.startswith("1 trial was stopped for good")


def test_a_runner_that_is_lost_while_it_stops_leaves_its_trial_waiting(api: Api, clock: FakeClock) -> None:
    study = study_of(api)
    lease = leased(api)
    evaluate(api, lease, 0.5)
    clock.advance(61)
    assert leased(api, "runner-2")["trial"]["number"] == 1
    assert states(api, study)[0] == "waiting"
    assert api.finish(lease, "released", 0.5).status_code == 409


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median", "wilcoxon"])
def test_the_last_evaluation_is_never_judged(api: Api, pruner: str) -> None:
    """With one evaluation a trial, every trial completes, whatever its values and its runner's timing."""
    options: dict[str, Any] = {"median": {"n_startup_trials": 0}}.get(pruner, {})
    study = study_of(api, trials=6, epochs=1, pruner=pruner, pruner_options=options)
    for value in (0.9, 0.8, 0.5, 0.3, 0.2, 0.1):
        lease = leased(api)
        assert evaluate(api, lease, value)["directive"] == "continue"
        assert api.finish(lease, "completed", value).status_code == 200
    assert states(api, study) == ["completed"] * 6


def test_with_evaluations_by_step_the_runner_says_which_one_is_the_last(api: Api) -> None:
    search = {"sampler": "random", "pruner": "asha", "trials": 6, "finished": 0, "concurrency": 2}
    api.create(search=search, training={"epochs": 1, "eval_steps": 10})
    first, second = leased(api), leased(api)
    assert evaluate(api, first, 0.5, first=10, total=10)["directive"] == "continue"
    assert evaluate(api, second, 0.1, first=10, total=20)["reason"] == "waiting"
    # A repeated report gets the same answer.
    assert evaluate(api, first, 0.5, first=10, total=10)["directive"] == "continue"
    assert evaluate(api, second, 0.1, first=10, total=20)["reason"] == "waiting"


def test_cancelling_a_study_or_stopping_a_trial_cancels_what_waits(api: Api) -> None:
    study = study_of(api)
    first, second = hold(api, 0.5), hold(api, 0.4)
    assert api.call("POST", f"/trials/{first['trial']['id']}/stop").json()["state"] == "cancelled"
    assert api.call("POST", f"/trials/{first['trial']['id']}/stop").status_code == 409
    assert api.call("POST", f"/studies/{study['id']}/cancel").status_code == 200
    assert states(api, study) == ["cancelled", "cancelled"]
    assert second["trial"]["number"] == 1


def test_asking_for_no_more_trials_ends_a_search_in_which_all_wait(api: Api) -> None:
    study = study_of(api)
    for value in (0.5, 0.4):
        hold(api, value)
    assert api.call("PATCH", f"/studies/{study['id']}", json={"trials": 2}).status_code == 200
    assert states(api, study) == ["pruned", "pruned"]
    ended = api.call("GET", f"/studies/{study['id']}").json()
    assert (ended["state"], "no search trial finished" in ended["reason"]) == ("failed", True)


def test_asking_for_no_more_trials_ends_a_search_in_which_all_have_ended(api: Api) -> None:
    study = api.create(search={"trials": 9})
    for _ in range(2):
        api.finish(leased(api), value=0.5)
    assert api.call("PATCH", f"/studies/{study['id']}", json={"trials": 2}).json()["state"] == "completed"


def test_a_restart_changes_nothing_for_trials_that_wait(api: Api, ctx: Context) -> None:
    """A server with no memory of the study promotes the same trial."""
    study = study_of(api)
    for value in (0.5, 0.4):
        hold(api, value)
    third = leased(api)
    ctx.histories._kept.clear()
    evaluate(api, third, 0.1)
    assert states(api, study)[:2] == ["queued", "waiting"]
    kinds = [e["kind"] for e in events(api, study)]
    assert kinds.count("trial.waiting") == 2


def events(api: Api, study: dict[str, Any]) -> list[dict[str, Any]]:
    with api.ctx.db.read() as session:
        return [{"kind": e.kind, **e.data} for e in Events(session).after(study["id"], 0)]
