"""The answer, the structure map, the table of trials and the page of one trial, as the server renders them."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs

import pytest

from service.dashboard.shell import PLOTLY_VERSION
from service.dashboard.trial_table import Query, TrialTable
from service.domain.states import TrialState
from service.domain.study_spec import StudySpec
from service.studies.workload import workload_of
from tests.conftest import Api, make_study

from ..helpers import login


def finished(api: Api, **changes: Any) -> dict[str, Any]:
    """A study with confirmation, whose value grows with r2."""
    compare = {"seeds": 3, "learning_rate": "shared", "baselines": ["lora"], **changes.pop("compare", {})}
    search = {"trials": 12, "concurrency": 1, "sampler": "random", **changes.pop("search", {})}
    study = api.create(compare=compare, search=search, **changes)
    while (lease := api.lease()) is not None:
        value = 0.5 + 0.02 * lease["trial"]["params"].get("r2", 1) + 0.001 * lease["trial"]["seed"]
        artifact = f"/artifacts/{lease['trial']['number']}/adapter"
        api.report(lease, value - 0.1, value)
        api.finish(lease, value=value, resources={"seconds": 30.0}, artifact=artifact)
    return study


def page(api: Api, address: str) -> str:
    answer = api.http.get(address)
    assert answer.status_code == 200, answer.text
    return answer.text


def test_a_finished_study_begins_with_its_answer_and_the_adapter(api: Api) -> None:
    study = finished(api)
    comparison = api.call("GET", f"/studies/{study['id']}/comparison").json()
    trials = api.call("GET", f"/studies/{study['id']}/trials", params={"limit": 200}).json()["items"]
    best = next(t for t in trials if t["candidate"] == "best")
    login(api)
    text = page(api, f"/studies/{study['id']}").replace("&#39;", "'")
    answer = text[text.index("The answer") : text.index('data-part="head"')]
    assert comparison["answer"] in answer
    assert comparison["selection"]["sentence"] in answer
    assert "The study took" in answer
    assert f"cdka fetch {study['id']}" in answer
    sizes = ", ".join(f"{n}={best['params'][n]}" for n in ("r1", "r2", "r"))
    assert f"CdkaConfig({sizes}, alpha={best['params']['alpha']:g}, target_modules='all-linear')" in answer
    assert f"/api/v1/trials/{best['id']}/adapter" in answer
    for form in ("html", "md", "json"):
        assert f"report?format={form}" in answer


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("lora", "LoraConfig(r="),
        ("dora", "use_dora=True"),
        ("rslora", "use_rslora=True"),
        ("miss", "MissConfig(r="),
        ("lokr", "decompose_factor="),
    ],
)
def test_the_adapter_of_another_method_is_configured_with_peft(api: Api, method: str, said: str) -> None:
    study = finished(api, search_space={"method": method}, search={"start": [], "trials": 3}, compare={"seeds": 0})
    login(api)
    assert said in page(api, f"/studies/{study['id']}")


def test_the_map_shows_results_choices_and_why_a_structure_is_not_searched(api: Api) -> None:
    study = finished(api, budget={"configuration": {"r1": 2, "r2": 4, "r": 2}, "min_fill": 0.85})
    login(api)
    text = page(api, f"/studies/{study['id']}")
    table = text[text.index('id="map"') : text.index("</table>", text.index('id="map"'))]
    rows = re.findall(r"<tr><th scope=\"row\">(\d+)</th>(.*?)</tr>", table, flags=re.DOTALL)
    assert [r1 for r1, _ in rows] == ["1", "2", "4"]
    barred = re.findall(r'class="barred" title="([^"]+)"', table)
    assert barred
    assert all("of the budget; min_fill is 85%" in reason or "the budget is" in reason for reason in barred)
    structures = {(s["r1"], s["r2"]) for s in study["structures"]}
    assert len(re.findall(r"\?r1=\d+&amp;r2=\d+", table)) == len(structures)
    assert '<span class="mark">best found</span>' in table
    assert '<span class="mark">guideline</span>' in table


def test_the_table_is_paged_filtered_and_sorted_by_its_address(api: Api) -> None:
    study = api.create(search={"trials": 60, "concurrency": 1, "sampler": "random"})
    api.run_all(lambda t: 0.4 + 0.001 * ((t["number"] * 7) % 60))
    login(api)

    def numbers(query: str) -> list[int]:
        text = page(api, f"/studies/{study['id']}?{query}")
        return [int(n) for n in re.findall(r'<a href="/trials/[0-9a-f]+">(\d+)</a>', text)]

    assert numbers("") == list(range(59, 9, -1))
    assert numbers("page=2") == list(range(9, -1, -1))
    assert numbers("sort=oldest&page=2") == numbers("sort=oldest&page=99") == list(range(50, 60))
    best = numbers("sort=best")
    assert best == sorted(range(60), key=lambda n: -((n * 7) % 60))[:50]
    trials = api.call("GET", f"/studies/{study['id']}/trials", params={"limit": 200}).json()["items"]
    chosen = [t["number"] for t in trials if (t["params"]["r1"], t["params"]["r2"]) == (2, 4)]
    assert numbers("r1=2&r2=4") == chosen[::-1][:50]
    assert numbers("state=failed") == []
    assert "No trial fits." in page(api, f"/studies/{study['id']}?state=failed")
    # What is no filter is left out instead of an error.
    assert numbers("state=nonsense&page=0&r1=-3&sort=x") == numbers("")
    form = page(api, f"/studies/{study['id']}?r1=2&sort=best&state=completed")
    form = form[form.index('class="inline filters"') : form.index("</form>", form.index('class="inline filters"'))]
    assert re.findall(r"<option selected>(\w+)", form) == ["completed"]
    assert 'name="r1" inputmode="numeric" value="2"' in form
    assert 'type="hidden" name="sort" value="best"' in form


def test_links_of_a_page_lead_to_the_others_and_keep_the_filter() -> None:
    query = Query(state=TrialState.COMPLETED, sort="oldest", page=3)
    table = TrialTable(query, [], total=301)
    assert table.pages == 7
    links = dict(table.links)
    assert list(links) == ["first", "previous", "next", "last"]
    assert parse_qs(links["next"]) == {"state": ["completed"], "sort": ["oldest"], "page": ["4"]}
    assert parse_qs(links["first"]) == {"state": ["completed"], "sort": ["oldest"]}
    assert Query.of({k: v[0] for k, v in parse_qs(links["last"]).items()}).page == 7


def test_a_trials_page_shows_its_parameters_beside_the_bests_and_its_log(api: Api) -> None:
    study = api.create(search={"trials": 2, "concurrency": 1})
    lease = api.lease()
    assert lease is not None
    body = {"start": 0, "text": "step 1 <b>bold</b>\n"}
    api.call("POST", f"/leases/{lease['id']}/logs", "worker", json=body)
    api.report(lease, 0.4, 0.5)
    api.finish(lease, value=0.5, resources={"seconds": 125.0, "peak_memory_bytes": 3 * 2**20})
    api.run_all(lambda t: 0.9)
    login(api)
    text = page(api, f"/trials/{lease['trial']['id']}")
    for words in ("Trial 0", "learning rate", "It ran to its end. It took 1 attempt.", "2 min", "3.0 MiB"):
        assert words in text
    assert "step 1 &lt;b&gt;bold&lt;/b&gt;" in text
    assert "differs" in text
    chart = api.call("GET", f"/trials/{lease['trial']['id']}/chart").json()
    assert chart["data"][1]["y"] == [0.4, 0.5]
    assert study["id"] in text


def test_a_failed_trial_says_why_and_members_retry_it(api: Api) -> None:
    api.create(search={"trials": 2, "retries": 0, "concurrency": 1})
    lease = api.lease()
    assert lease is not None
    api.finish(lease, "failed", None, failure={"kind": "error", "message": "ValueError: no such thing"})
    address = f"/trials/{lease['trial']['id']}"
    login(api, "viewer")
    text = page(api, address)
    assert "error: ValueError: no such thing" in text
    assert "<button>Retry</button>" not in text
    assert api.http.post(f"{address}/retry").status_code == 403
    login(api)
    assert "<button>Retry</button>" in page(api, address)
    assert api.http.post(f"{address}/retry").status_code == 200
    assert api.call("GET", f"/trials/{lease['trial']['id']}").json()["state"] == "queued"
    again = api.http.post(f"{address}/retry")
    assert again.status_code == 409
    assert "only a failed one is retried" in again.text


def test_a_trial_is_cloned_from_its_page(api: Api) -> None:
    study = api.create(search={"trials": 3, "concurrency": 1})
    lease = api.lease()
    assert lease is not None
    api.finish(lease, value=0.5, artifact="/artifacts/0/adapter")
    login(api)
    address = f"/trials/{lease['trial']['id']}/clone"
    made = api.http.post(address, data={"learning_rate": "0.0007", "warm": "yes"}, follow_redirects=False)
    assert made.status_code == 303
    clone = api.call("GET", f"/trials/{made.headers['location'].rpartition('/')[2]}").json()
    assert (clone["params"]["learning_rate"], clone["start_from"]) == (0.0007, "/artifacts/0/adapter")
    for value, words in (("fast", "is no number"), ("-1", "greater than 0"), ("nan", "finite")):
        refused = api.http.post(address, data={"learning_rate": value})
        assert refused.status_code == 422
        assert words in refused.text
    assert len(api.call("GET", f"/studies/{study['id']}/trials").json()["items"]) == 2


def test_trials_of_other_teams_are_not_found(api: Api) -> None:
    api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    api.http.post("/login", data={"token": api.token("member", "others")})
    assert api.http.get(f"/trials/{lease['trial']['id']}").status_code == 404
    api.http.cookies.clear()
    assert api.http.get(f"/trials/{lease['trial']['id']}", follow_redirects=False).headers["location"] == "/login"


def test_plotly_is_sent_packed_and_may_be_kept_for_a_year_by_its_version(api: Api) -> None:
    address = f"/static/plotly.min.js?v={PLOTLY_VERSION}"
    packed = api.http.get(address, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < 1_700_000
    assert "max-age=31536000" in packed.headers["cache-control"]
    plain = api.http.get("/static/plotly.min.js", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == packed.content
    assert "max-age=86400" in plain.headers["cache-control"]


def test_a_silent_runner_is_not_shown_as_idle(api: Api, clock: Any) -> None:
    api.create(search={"trials": 1})
    lease = api.lease("runner-1")
    assert lease is not None
    api.finish(lease)
    api.lease("runner-1")
    login(api)
    assert "<td>idle</td>" in page(api, "/operation")
    clock.advance(600)
    assert "<td>silent</td>" in page(api, "/operation")


def test_a_running_study_says_what_it_will_take(api: Api) -> None:
    study = api.create(
        search={"trials": 10, "concurrency": 2, "recheck": {"top": 3, "seeds": 2}},
        compare={"seeds": 3, "learning_rate": "tuned", "predictors": ["guideline"], "baselines": ["lora"]},
    )
    login(api)
    assert "up to 44 trainings: 10 searched, 6 to recheck the best, 16 to tune learning rates, 12 to confirm" in page(
        api, f"/studies/{study['id']}"
    )
    lease = api.lease()
    assert lease is not None
    api.finish(lease, value=0.5, resources={"seconds": 120.0})
    # 43 trainings of two minutes, two at a time.
    assert "About 43 min left at the pace so far" in page(api, f"/studies/{study['id']}")
    assert workload_of(StudySpec.model_validate(make_study())).told() == "up to 4 trainings: 4 searched"
