"""Reports: self-contained, true to the records, and a study file again."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from service.schemas.study_file import StudyFile
from tests.conftest import Api

FORMATS = ("html", "md", "json")


def report(api: Api, study: dict[str, Any], form: str = "html", role: str = "viewer") -> str:
    answer = api.call("GET", f"/studies/{study['id']}/report", role, params={"format": form})
    assert answer.status_code == 200, answer.text
    return answer.text


def run(api: Api, **changes: Any) -> dict[str, Any]:
    """A study whose value grows with r2, through confirmation."""
    compare = {"seeds": 3, "learning_rate": "shared", "predictors": ["guideline", "alignment"], "baselines": ["lora"]}
    search = {"trials": 16, "concurrency": 1, "sampler": "random", **changes.pop("search", {})}
    study = api.create(search=search, compare={**compare, **changes.pop("compare", {})}, **changes)

    def value(trial: dict[str, Any]) -> float:
        wobble = 0.002 * ((trial["seed"] * 7 + trial["number"]) % 5 - 2)
        return 0.6 + 0.02 * trial["params"].get("r2", 1) + wobble

    while (lease := api.lease()) is not None:
        api.finish(lease, value=value(lease["trial"]), resources={"seconds": 10.0, "device": "cpu"})
    return api.call("GET", f"/studies/{study['id']}").json()


class _Parts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            v or "" for k, v in attrs if k in ("src", "href", "xlink:href") and not (v or "").startswith("#")
        ]


def test_the_html_is_one_file_without_scripts_or_requests(api: Api) -> None:
    text = report(api, run(api))
    parts = _Parts()
    parts.feed(text)
    assert "script" not in parts.tags
    assert parts.links == []
    assert "url(" not in text.replace("url(#", "")
    assert parts.tags.count("svg") == 2
    assert "@import" not in text


def test_it_begins_with_the_answer_and_says_what_follows(api: Api) -> None:
    study = run(api)
    comparison = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert comparison["answer"]
    for form in ("html", "md"):
        text = html.unescape(re.sub(r"\\(.)", r"\1", report(api, study, form)))
        for said in (
            comparison["answer"],
            comparison["selection"]["sentence"],
            "Each doubling of r2 improved the result",
        ):
            assert said in text, said
        assert "The study took" in text
        assert "search 0" in text
        assert "confirmation 1, 2, 3" in text


@pytest.mark.parametrize("name", ['<script>alert(1)</script> "x" & $y$', "| a | `b` *c* [d](e)", "研究 دراسة 🚀"])
def test_names_are_text_in_every_format(api: Api, name: str) -> None:
    study = run(api, name=name)
    page = report(api, study)
    assert "<script>" not in page
    heading = re.sub(r"\\(.)", r"\1", report(api, study, "md").splitlines()[0])
    assert heading == f"# {name}"
    assert json.loads(report(api, study, "json"))["name"] == name


def test_the_json_is_a_study_file_again(api: Api, tmp_path: Path) -> None:
    study = run(api)
    file = tmp_path / "report.json"
    file.write_text(report(api, study, "json"))
    again = StudyFile(file)
    again.check()
    assert again.content == study["spec"]
    assert (again.line("#/search/trials") or 0) > 10
    made = api.call("POST", "/studies", json=again.content)
    assert made.status_code == 201, made.text
    assert made.json()["spec"] == study["spec"]


def test_it_names_what_is_needed_to_repeat_it(api: Api) -> None:
    found = json.loads(report(api, run(api), "json"))
    assert found["report"] == 1
    assert found["seeds"] == {"search": [0], "confirmation": [1, 2, 3]}
    assert found["devices"] == {"cpu": found["trials"]["completed"] + 3 * len(_runs(found))}
    assert {"server: cdka", "server: optuna"} <= found["versions"].keys()
    assert found["versions"]["server: commit"] == "0123abc"
    assert found["worth"]["device"] == "CPU"


def _runs(found: dict[str, Any]) -> list[str]:
    """The candidates with runs of their own."""
    rows = found["comparison"]["candidates"]
    return [c["name"] for c in rows if not any("identical" in flag for flag in c["flags"])]


def never(api: Api) -> dict[str, Any]:
    return api.create()


def all_failed(api: Api) -> dict[str, Any]:
    study = api.create(search={"trials": 2, "retries": 0})
    while (lease := api.lease()) is not None:
        api.finish(lease, "infeasible", None, failure={"kind": "diverged", "message": "nan"})
    return study


def without_confirmation(api: Api) -> dict[str, Any]:
    return run(api, compare={"seeds": 0})


def all_equal(api: Api) -> dict[str, Any]:
    study = api.create(search={"trials": 12}, compare={"seeds": 3, "learning_rate": "shared"})
    api.run_all(lambda trial: 0.5)
    return study


def one_seed(api: Api) -> dict[str, Any]:
    return run(api, compare={"seeds": 1})


def failed_candidate(api: Api) -> dict[str, Any]:
    study = api.create(search={"trials": 3}, compare={"seeds": 3, "learning_rate": "shared"})
    while (lease := api.lease()) is not None:
        if lease["trial"]["method"] == "lora":
            api.finish(lease, "infeasible", None, failure={"kind": "diverged", "message": "nan"})
        else:
            api.finish(lease, value=0.5 + 0.01 * lease["trial"]["number"])
    return study


def other_methods(api: Api) -> dict[str, Any]:
    return run(api, search_space={"method": {"choices": ["lora", "miss"]}}, search={"start": []})


def huge_losses(api: Api) -> dict[str, Any]:
    objectives = [{"metric": "loss", "direction": "minimize"}]
    compare = {"seeds": 3, "learning_rate": "shared"}
    study = api.create(objectives=objectives, search={"trials": 12}, compare=compare)
    while (lease := api.lease()) is not None:
        api.finish(lease, metrics={"loss": 1e12 * (1 + lease["trial"]["number"])})
    return study


CASES: dict[str, Any] = {
    made.__name__: made
    for made in (
        *(never, all_failed, without_confirmation, all_equal, one_seed, failed_candidate, other_methods, huge_losses),
    )
}


@pytest.mark.parametrize("case", CASES)
def test_every_state_of_a_study_has_a_report(api: Api, case: str) -> None:
    study = CASES[case](api)
    texts = {form: report(api, study, form) for form in FORMATS}
    json.loads(texts["json"], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    for text in (texts["html"], texts["md"]):
        assert "None" not in text
        assert "nan" not in text.lower().replace("finan", "").replace("domin", "")
    if case in ("never", "all_failed"):
        assert "There is no answer yet" in texts["html"]
    if case == "without_confirmation":
        assert "Nothing was confirmed" in texts["html"]


def test_a_wrong_format_is_named(api: Api) -> None:
    answer = api.call("GET", f"/studies/{api.create()['id']}/report", params={"format": "pdf"})
    assert answer.status_code == 422
    assert "'html', 'md' or 'json'" in answer.text


def test_other_teams_get_404(api: Api) -> None:
    study = api.create()
    assert api.call("GET", f"/studies/{study['id']}/report", team="others").status_code == 404


def test_the_search_says_when_it_passed_the_guidelines_trial(api: Api) -> None:
    study = api.create(search={"trials": 4, "concurrency": 1, "start": ["guideline"]}, compare={"seeds": 0})
    values = iter([0.7, 0.6, 0.72, 0.75])
    while (lease := api.lease()) is not None:
        api.finish(lease, value=next(values), resources={"seconds": 60.0})
    worth = json.loads(report(api, study, "json"))["worth"]
    assert worth["guideline"]["value"] == 0.7
    assert (worth["guideline"]["passed"]["trials"], worth["guideline"]["passed"]["device_seconds"]) == (3, 180.0)
    assert [r["best"] for r in worth["records"]] == [0.7, 0.72, 0.75]
    assert any("after 3 trials and 3 min of CPU time, and ended 5 points ahead" in s for s in worth["sentences"])


def test_money_is_counted_where_a_gpu_hour_has_a_price(api: Api) -> None:
    study = api.create(
        search={"trials": 2, "concurrency": 1},
        limits={"gpu_hour_price": 2.5},
        resources={"gpus": 1},
    )
    while (lease := api.lease(gpus=1)) is not None:
        api.finish(lease, value=0.5, resources={"seconds": 3600.0, "gpu_seconds": 3600.0})
    worth = json.loads(report(api, study, "json"))["worth"]
    assert (worth["device"], worth["price"]) == ("GPU", 5.0)
    assert "5.00 at 2.5 an hour" in worth["sentences"][0]


def test_random_search_says_what_more_trials_would_bring_and_others_say_why_not(api: Api) -> None:
    worth = json.loads(report(api, run(api), "json"))["worth"]
    expected = worth["expected"]
    assert expected["trials"][-1] == 36
    assert all(
        low <= m <= high for low, m, high in zip(expected["low"], expected["median"], expected["high"], strict=True)
    )
    assert expected["median"] == sorted(expected["median"])
    other = json.loads(report(api, run(api, search={"sampler": "tpe"}), "json"))["worth"]
    assert other["expected"] is None
    assert any("trials of the sampler tpe depend on each other" in s for s in other["sentences"])


def test_correlations_below_zero_are_within_their_bounds(api: Api) -> None:
    objectives = [{"metric": "matthews_correlation", "direction": "maximize"}]
    study = api.create(objectives=objectives, search={"trials": 8, "concurrency": 1, "sampler": "random"})
    while (lease := api.lease()) is not None:
        api.finish(lease, metrics={"matthews_correlation": 0.1 * lease["trial"]["number"] - 0.2})
    expected = json.loads(report(api, study, "json"))["worth"]["expected"]
    assert expected["low"][0] < 0


def test_an_extended_study_does_not_mix_two_winners(api: Api) -> None:
    study = run(api, search={"trials": 3})
    api.call("PATCH", f"/studies/{study['id']}", json={"trials": 4})
    lease = api.lease()
    assert lease is not None
    api.finish(lease, value=0.99)
    found = api.call("GET", f"/studies/{study['id']}/comparison").json()
    assert found["best_trial"]["value"] == 0.99
    assert found["selection"] is None
    report(api, study)


def test_a_value_outside_of_a_logarithmic_range_breaks_no_report(api: Api) -> None:
    study = api.create(
        search={"trials": 22, "sampler": "random"},
        search_space={"dropout": {"low": 0.01, "high": 0.3, "log": True}},
    )
    params = {"r1": 1, "r2": 4, "r": 2, "alpha": 8, "learning_rate": 0.001, "dropout": 0}
    assert api.call("POST", f"/studies/{study['id']}/trials", json={"params": params}).status_code == 201
    api.run_all(lambda t: 0.5 + t["number"] / 100)
    for form in FORMATS:
        assert report(api, study, form)


def test_a_study_of_an_earlier_release_is_posted_again(api: Api) -> None:
    """It has every key of its release, with its default, beside what it searches."""
    study = api.create(search_space={"dropout": {"low": 0, "high": 0.3}})
    body = api.call("GET", f"/studies/{study['id']}").json()["spec"]
    del body["adapter"]["groups"]
    assert api.call("POST", "/studies", json=body).status_code == 201
