"""How far running trials are: in the API, in the terminal and on the page."""

from __future__ import annotations

from service.cli.tables import trials_table
from service.schemas.trials import TrialOut
from tests.conftest import Api, FakeClock
from tests.service.helpers import lease_of, login, trials_of


def heartbeat(api: Api, lease: dict[str, object], step: int, total: int | None = 120) -> None:
    body = {"reports": [{"step": step, "metrics": {}}], "total_steps": total}
    assert api.call("POST", f"/leases/{lease['id']}/reports", "worker", json=body).status_code == 200


def test_a_heartbeat_says_how_far_a_trial_is(api: Api, clock: FakeClock) -> None:
    study = api.create()
    lease = lease_of(api)
    (running,) = trials_of(api, study, state="running")
    assert (running["progress"]["step"], running["progress"]["total_steps"]) == (0, None)
    clock.advance(30)
    heartbeat(api, lease, 40)
    clock.advance(10)
    (running,) = trials_of(api, study, state="running")
    assert running["progress"] == {
        "step": 40,
        "total_steps": 120,
        "seconds": 40.0,
        "left": 50.0,
        "runner": "runner",
    }
    assert api.call("GET", f"/trials/{running['id']}").json()["progress"]["step"] == 40
    assert running["metrics"] == {}, "no value is made of a heartbeat"
    api.finish(lease)
    assert trials_of(api, study)[0]["progress"] is None


def test_the_terminal_and_the_page_show_it(api: Api, clock: FakeClock) -> None:
    study = api.create()
    lease = lease_of(api)
    login(api)
    assert "preparing" in api.http.get(f"/studies/{study['id']}").text
    clock.advance(60)
    heartbeat(api, lease, 60)
    shown = trials_table([TrialOut.model_validate(t) for t in trials_of(api, study)], "accuracy")
    states = list(shown.columns[2].cells)
    assert "running 60/120, 60 s left" in states
    part = api.http.get(f"/studies/{study['id']}/running").text
    assert "60 of 120 steps" in part
    assert "about 60 s left" in part
    api.http.cookies.clear()
    assert api.http.get(f"/studies/{study['id']}/running").status_code == 401


def test_a_later_attempt_has_no_estimate(api: Api, clock: FakeClock) -> None:
    """It may have begun at a checkpoint, so its pace is not known."""
    study = api.create(search={"trials": 1})
    first = lease_of(api)
    heartbeat(api, first, 60)
    api.finish(first, "released", value=None)
    second = lease_of(api)
    clock.advance(10)
    heartbeat(api, second, 90)
    (running,) = trials_of(api, study, state="running")
    assert running["progress"]["left"] is None
    assert running["progress"]["step"] == 90
