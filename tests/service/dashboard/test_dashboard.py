"""The dashboard's pages, as the server renders them."""

from __future__ import annotations

import re

from tests.conftest import Api

from ..helpers import login


def test_pages_redirect_to_the_login(api: Api) -> None:
    study = api.create()
    for path in ("/", f"/studies/{study['id']}"):
        response = api.http.get(path, follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (303, "/login")
    assert api.http.get(f"/studies/{study['id']}/body").status_code == 401


def test_the_study_page_shows_state_trials_predictions_and_comparison(api: Api) -> None:
    study = api.create(
        name="<script>alert(1)</script>", search={"trials": 2}, compare={"seeds": 2, "learning_rate": "shared"}
    )
    api.run_all(lambda t: 0.5)
    login(api)
    page = api.http.get(f"/studies/{study['id']}").text
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    for words in (
        "completed",
        "Did searching beat the prediction?",
        "guideline as published",
        "LoRA rank",
        "2 seeds only illustrate",
    ):
        assert words in page
    assert page.count('<td class="figures right">0.5000</td>') >= 2
    assert api.http.get("/").text.count(f'/studies/{study["id"]}"') == 1


def test_the_live_part_is_sent_only_when_it_has_changed(api: Api) -> None:
    study = api.create()
    login(api)
    first = api.http.get(f"/studies/{study['id']}/body")
    assert "data-live" in first.text
    version = int(first.text.split('data-version="')[1].split('"')[0])
    assert api.http.get(f"/studies/{study['id']}/body?version={version}").status_code == 204
    api.lease()
    assert api.http.get(f"/studies/{study['id']}/body?version={version}").status_code == 200


def test_members_may_cancel_by_button_and_viewers_may_not(api: Api) -> None:
    study = api.create()
    login(api, "viewer")
    assert "Cancel study" not in api.http.get(f"/studies/{study['id']}").text
    assert api.http.post(f"/studies/{study['id']}/cancel").status_code == 403
    login(api, "member")
    assert "Cancel study" in api.http.get(f"/studies/{study['id']}").text
    assert api.http.post(f"/studies/{study['id']}/cancel").status_code == 200
    assert api.call("GET", f"/studies/{study['id']}").json()["state"] == "cancelled"


def test_a_missing_study_is_a_page_and_plotly_is_served_from_its_package(api: Api) -> None:
    login(api)
    missing = api.http.get("/studies/nope")
    assert missing.status_code == 404
    assert "there is no study nope" in missing.text
    plotly = api.http.get("/static/plotly.min.js")
    assert plotly.status_code == 200
    assert len(plotly.content) > 1_000_000


def test_charts_show_the_history_and_the_comparison(api: Api) -> None:
    study = api.create(search={"trials": 3}, compare={"seeds": 3, "learning_rate": "shared"})
    api.run_all(lambda t: 0.1 * t["number"])
    history = api.call("GET", f"/studies/{study['id']}/charts/history", "viewer").json()
    completed, _, _, best = history["data"]
    assert completed["y"] == [0.0, 0.1, 0.2]
    assert best["y"] == [0.0, 0.1, 0.2, 0.2]
    comparison = api.call("GET", f"/studies/{study['id']}/charts/comparison").json()
    assert len(comparison["data"][1]["x"]) == len(set(comparison["data"][1]["y"]))
    assert api.call("GET", f"/studies/{study['id']}/charts/pie").status_code == 422


def test_members_pause_and_resume_by_button(api: Api) -> None:
    study = api.create()
    login(api)
    page = f"/studies/{study['id']}"
    assert "Waiting for a runner" in api.http.get(page).text
    assert ">Resume<" in api.http.post(f"{page}/pause").text
    assert api.call("GET", page).json()["state"] == "paused"
    assert ">Pause<" in api.http.post(f"{page}/resume").text
    assert api.http.post(f"{page}/explode").status_code == 422
    login(api, "viewer")
    assert api.http.post(f"{page}/pause").status_code == 403


def test_the_operation_page_shows_quotas_runners_and_the_audit_log(api: Api) -> None:
    study = api.create(name="<b>bold</b>")
    api.lease("runner-7")
    team = api.call("GET", "/teams", "admin").json()["items"][0]
    api.call("PATCH", f"/teams/{team['id']}", "admin", json={"max_running_trials": 3})
    login(api)
    page = api.http.get("/operation").text
    assert '<td class="figures">1 / 3</td>' in page
    assert "runner-7" in page
    assert "study.create" in page
    assert study["id"] in page
    assert "<b>bold" not in page
    api.http.cookies.clear()
    assert api.http.get("/operation", follow_redirects=False).status_code == 303


def test_a_long_history_chart_is_thinned_but_keeps_every_new_best() -> None:
    from service.dashboard.charts import MOST_POINTS, history
    from service.domain.records import Observation
    from service.domain.states import TrialState
    from service.domain.study_spec import StudySpec
    from tests.conftest import make_study

    class Study:
        spec = StudySpec.model_validate(make_study())

    trials = [
        Observation(n, TrialState.COMPLETED, {"r": 1}, metrics={"accuracy": 1.0 if n == 4321 else 0.5})
        for n in range(10_000)
    ]
    figure = history(Study(), trials)  # type: ignore[arg-type]
    completed, _, _, best = figure["data"]
    assert len(completed["x"]) <= MOST_POINTS + 10
    assert 4321 in completed["x"]
    assert best["x"] == [0, 4321, 9999]
    assert f"one in {-(-10_000 // MOST_POINTS)} " in figure["layout"]["xaxis"]["title"]["text"]


def test_further_parameters_have_columns(api: Api) -> None:
    study = api.create(search_space={"schedule": {"choices": ["linear", "cosine"]}, "dropout": {"low": 0, "high": 0.5}})
    api.run_all(lambda t: 0.5)
    login(api)
    page = api.http.get(f"/studies/{study['id']}").text
    heads = re.findall(r'<th scope="col"[^>]*>(?:<a [^>]*>)?([^<]*)', page[page.index('id="trials"') :])
    assert heads[heads.index("learning rate") + 1 :][:2] == ["dropout", "schedule"]
    assert ">linear<" in page or ">cosine<" in page


def test_sizes_are_those_of_the_method(api: Api) -> None:
    study = api.create(
        search={"trials": 12, "sampler": "random"}, search_space={"method": {"choices": ["lokr", "miss"]}}
    )
    api.run_all(lambda t: 0.5)
    login(api)
    page = api.http.get(f"/studies/{study['id']}").text
    assert re.search(r'<td class="figures">r \d+, factor \d+</td>', page)
    assert re.search(r'<td class="figures">r \d+</td>', page)
