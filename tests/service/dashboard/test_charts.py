"""What each chart of a search shows, against the trials."""

from __future__ import annotations

import csv
import io
import math
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.dashboard.charts_api import ChartKind, as_csv
from service.dashboard.parameter_charts import contour, parallel, slice_of
from service.dashboard.search_charts import distribution, pareto, thinned
from service.domain.records import Study
from service.domain.states import TrialPhase, TrialState
from service.domain.study_spec import Direction, StudySpec
from tests.conftest import Api, make_study
from tests.service.helpers import trials_of

SEARCH = {"trials": 24, "sampler": "random", "start": []}


def value_of(trial: dict[str, Any]) -> float:
    return 0.5 + 0.02 * math.log2(trial["params"].get("r2", 1)) + 0.001 * trial["number"]


def made(api: Api, **changes: Any) -> dict[str, Any]:
    study = api.create(**({"search": SEARCH, "compare": {"seeds": 0, "predictors": ["guideline"]}} | changes))
    api.run_all(value_of)
    return study


def chart(api: Api, study: dict[str, Any], kind: str, **query: str) -> dict[str, Any]:
    answer = api.call("GET", f"/studies/{study['id']}/charts/{kind}", "viewer", params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_slice_shows_each_trial_at_its_value(api: Api) -> None:
    study = made(api)
    figure = chart(api, study, "slice", x="r2")
    (points,) = figure["data"]
    by_number = {t["number"]: t for t in trials_of(api, study)}
    for number, x, y in zip(points["customdata"], points["x"], points["y"], strict=True):
        assert x == by_number[number]["params"]["r2"]
        assert y == by_number[number]["metrics"]["accuracy"]
    assert len(points["x"]) == 24
    assert figure["layout"]["meta"] == {"x": "r2", "y": "accuracy"}
    assert chart(api, study, "slice", x="learning_rate")["layout"]["xaxis"]["type"] == "log"
    assert chart(api, study, "slice", x="nonsense")["layout"]["meta"]["x"] in by_number[0]["params"]


def test_a_filter_holds_for_every_chart_of_the_search(api: Api) -> None:
    study = made(api)
    kept = [t["number"] for t in trials_of(api, study) if t["params"]["r2"] == 4]
    assert 0 < len(kept) < 24
    for kind in ("slice", "pareto"):
        shown = [n for s in chart(api, study, kind, where="r2 = 4", x="alpha")["data"] for n in s["customdata"]]
        assert sorted(shown) == sorted(kept)
    assert chart(api, study, "history", where="r2 = 4")["data"][0]["x"] == sorted(kept)
    lines = [n for s in chart(api, study, "parallel", where="r2 = 4")["data"] for n in s["customdata"]]
    assert set(lines) - {None} == set(kept)
    (steps,) = chart(api, study, "distribution", where="r2 = 4")["data"]
    assert len(steps["x"]) == len(kept)
    refused = api.call("GET", f"/studies/{study['id']}/charts/slice", params={"where": "r9 = 4"})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "#/where"


def test_parallel_axes_have_every_parameter_that_varied_and_the_result(api: Api) -> None:
    study = made(api, search_space={"schedule": {"choices": ["linear", "cosine"]}})
    figure = chart(api, study, "parallel")
    dimensions = figure["layout"]["meta"]["dimensions"]
    names = [d["name"] for d in dimensions]
    assert names[-1] == "accuracy"
    assert {"r1", "r2", "alpha", "learning_rate", "schedule"} <= set(names)
    text = api.call("GET", f"/studies/{study['id']}/charts/parallel", params={"format": "csv"}).text
    shown = {int(row["trial"]): row for row in csv.DictReader(io.StringIO(text))}
    for t in trials_of(api, study):
        row = shown[t["number"]]
        assert row["schedule"] == t["params"]["schedule"]
        for name in ("r1", "r2", "alpha", "learning_rate"):
            assert float(row[name]) == pytest.approx(t["params"][name], rel=1e-4)
        assert float(row["accuracy"]) == pytest.approx(t["metrics"]["accuracy"], rel=1e-4)
    best = max(trials_of(api, study), key=lambda t: t["metrics"]["accuracy"])
    assert best["number"] in figure["data"][-1]["customdata"], "the best lies on top"


def test_no_chart_needs_code_that_the_content_security_policy_forbids(api: Api) -> None:
    study = made(api)
    kinds = {s["type"] for kind in ChartKind for s in chart(api, study, kind)["data"]}
    assert kinds <= {"scatter", "bar", "contour"}


def test_contour_has_the_mean_of_the_trials_in_each_cell(api: Api) -> None:
    study = made(api)
    field, points = chart(api, study, "contour", x="r1", y="r2")["data"]
    cells: dict[tuple[int, int], list[float]] = {}
    for t in trials_of(api, study):
        cells.setdefault((t["params"]["r1"], t["params"]["r2"]), []).append(t["metrics"]["accuracy"])
    for j, r2 in enumerate(field["y"]):
        for k, r1 in enumerate(field["x"]):
            mine = cells.get((r1, r2))
            expected = None if mine is None else pytest.approx(sum(mine) / len(mine))
            assert field["z"][j][k] == expected
    assert len(points["x"]) == 24


def test_the_pareto_front_is_not_dominated_and_the_budget_is_drawn(api: Api) -> None:
    study = made(api)
    figure = chart(api, study, "pareto")
    dominated, front = figure["data"]
    best = list(zip(front["x"], front["y"], strict=True))
    everything = best + list(zip(dominated["x"], dominated["y"], strict=True))
    for cost, value in best:
        assert not any((c <= cost and v > value) or (c < cost and v >= value) for c, v in everything)
    assert figure["layout"]["shapes"][0]["x0"] == study["budget"]["max_parameters"]
    parameters = {t["number"]: t["parameters"] for t in trials_of(api, study)}
    assert [parameters[n] for n in front["customdata"]] == front["x"]


def test_predicted_against_observed_has_the_predictors_scores(api: Api) -> None:
    study = made(api)
    (points,) = chart(api, study, "predicted", predictor="guideline")["data"]
    best = api.call("GET", f"/studies/{study['id']}/predictions").json()[0]["best"]
    scores = dict(zip(points["customdata"], points["x"], strict=True))
    checked = 0
    for t in trials_of(api, study):
        for entry in best:
            if all(t["params"][n] == entry[n] for n in ("r1", "r2", "r")):
                assert scores[t["number"]] == entry["score"]
                checked += 1
    assert checked


def test_importances_and_effects_are_those_of_the_report(api: Api) -> None:
    study = made(api)
    report = api.call("GET", f"/studies/{study['id']}/report", params={"format": "json"}).json()["effects"]
    (bar,) = chart(api, study, "importances")["data"]
    shares = dict(zip(bar["y"], bar["x"], strict=True))
    assert shares == {name.replace("_", " "): share for name, share in report["importances"].items()}
    (points,) = chart(api, study, "effects", x="r2")["data"]
    assert points["y"] == [level["mean"] for level in report["means"]["r2"]]
    assert points["error_y"]["array"][0] == pytest.approx(report["means"]["r2"][0]["high"] - points["y"][0])


def test_regret_falls_to_zero_and_the_distribution_rises_to_one(api: Api) -> None:
    study = made(api)
    (line,) = chart(api, study, "regret")["data"]
    assert line["y"] == sorted(line["y"], reverse=True)
    assert line["y"][-1] == 0
    (steps,) = chart(api, study, "distribution")["data"]
    assert steps["x"] == sorted(t["metrics"]["accuracy"] for t in trials_of(api, study))
    assert steps["y"][-1] == 1


def test_evaluations_of_trials_that_ended_early_are_told_apart(api: Api) -> None:
    study = api.create(search={"trials": 2, "sampler": "random", "start": []}, compare={"seeds": 0})
    for k, state in enumerate(("completed", "cancelled")):
        lease = api.lease("runner")
        assert lease is not None
        api.report(lease, 0.5 + k / 10, 0.6 + k / 10)
        api.finish(lease, state, value=0.6 if state == "completed" else None)
    early, full = chart(api, study, "curves")["data"]
    assert (early["x"], early["y"], early["customdata"]) == ([1, 2, None], [0.6, 0.7, None], [1, 1, None])
    assert (full["name"], full["y"]) == ("completed", [0.5, 0.6, None])
    assert early["opacity"] < full["opacity"]


def test_the_timeline_has_a_bar_for_each_trial(api: Api) -> None:
    study = made(api)
    bars = chart(api, study, "timeline")["data"]
    assert sorted(n for bar in bars for n in bar["customdata"]) == list(range(24))


def test_the_history_has_the_guidelines_own_trial_as_a_line(api: Api) -> None:
    study = api.create(search={"trials": 6, "start": ["guideline"]}, compare={"seeds": 0})
    api.run_all(value_of)
    line = next(s for s in chart(api, study, "history")["data"] if s["name"] == "the guideline's trial")
    first = next(t for t in trials_of(api, study) if t["number"] == 0)
    assert line["y"] == [first["metrics"]["accuracy"]] * 2


def test_every_chart_of_nothing_one_value_and_equal_values_says_what_it_is(api: Api) -> None:
    study = api.create(search={"trials": 6, "sampler": "random"}, compare={"seeds": 0})
    for many in (0, 1, 5):
        for _ in range(many):
            lease = api.lease("runner")
            if lease is not None:
                api.finish(lease, value=1e12)
        for kind in ChartKind:
            figure = chart(api, study, kind)
            assert figure["data"] or figure["layout"].get("annotations"), (kind, many)
            text = api.call("GET", f"/studies/{study['id']}/charts/{kind}", params={"format": "csv"}).text
            assert list(csv.reader(io.StringIO(text))), (kind, many)


def test_every_chart_of_failed_trials_is_drawn(api: Api) -> None:
    study = api.create(search={"trials": 3, "sampler": "random", "retries": 0}, compare={"seeds": 0})
    while (lease := api.lease()) is not None:
        api.finish(lease, "failed", value=None, failure={"kind": "error", "message": "it broke"})
    for kind in ChartKind:
        chart(api, study, kind)


def test_points_come_as_csv(api: Api) -> None:
    study = made(api)
    text = api.call("GET", f"/studies/{study['id']}/charts/slice", params={"format": "csv", "x": "r2"}).text
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["series", "r2", "accuracy (validation)", "note"]
    assert len(rows) == 25
    text = api.call("GET", f"/studies/{study['id']}/charts/parallel", params={"format": "csv"}).text
    assert len(list(csv.reader(io.StringIO(text)))) == 25


def test_a_long_search_keeps_its_best_trials() -> None:
    made_up = [{"number": n, "accuracy": float((n * 7919) % 50_000)} for n in range(50_000)]
    objective = SimpleNamespace(metric="accuracy", direction=Direction.MAXIMIZE)
    study = cast(Study, SimpleNamespace(spec=SimpleNamespace(objective=objective)))
    kept = thinned(study, made_up, 2_000)
    assert len(kept) <= 2_000
    best = sorted(made_up, key=lambda r: -r["accuracy"])[:500]
    assert {r["number"] for r in best} <= {r["number"] for r in kept}


def rows_with(values: list[float], **columns: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "number": n,
            "state": TrialState.COMPLETED,
            "phase": TrialPhase.SEARCH,
            "method": "cdka",
            "accuracy": value,
            **{name: column[n] for name, column in columns.items()},
        }
        for n, value in enumerate(values)
    ]


def study_alone(**plan: Any) -> Study:
    spec = StudySpec.model_validate(make_study())
    return cast(Study, SimpleNamespace(spec=spec, plan=SimpleNamespace(groups={}, max_parameters=100, **plan)))


def test_statistics_of_long_searches_are_those_of_all_trials() -> None:
    order = random.Random(0)
    values = [order.random() for _ in range(5_000)]
    sizes = [1 + order.randrange(4) for _ in values]
    costs = {n: order.randrange(1_000) for n in range(5_000)}
    rows = rows_with(values, r1=sizes, alpha=[order.uniform(8, 64) for _ in values])
    (steps,) = distribution(study_alone(), rows)["data"]
    assert len(steps["x"]) < 600
    at_most = dict(zip(steps["y"], steps["x"], strict=True))
    assert at_most[1.0] == max(values)
    middle = min(at_most, key=lambda share: abs(share - 0.5))
    assert at_most[middle] == sorted(values)[round(middle * 5_000) - 1]
    _, front = pareto(study_alone(), rows, costs)["data"]
    points = sorted((costs[n], -values[n]) for n in range(5_000))
    true, best = [], 0.0
    for cost, value in points:
        if value < best:
            true.append((cost, -value))
            best = value
    assert list(zip(front["x"], front["y"], strict=True)) == true
    field, dots = contour(study_alone(), rows, "r1", "alpha")["data"]
    assert len(dots["x"]) <= 500
    lowest = [v for v, r1, row in zip(values, sizes, rows, strict=True) if r1 == 1 and row["alpha"] < 8 + 56 / 12]
    assert field["z"][0][0] == pytest.approx(sum(lowest) / len(lowest), rel=0.05)


def test_a_trial_without_a_parameter_has_no_place_on_its_axis() -> None:
    rows = rows_with([0.1, 0.2, 0.3], r1=[2, None, 4], alpha=[8.0, 16.0, None])
    figure = parallel(study_alone(), rows)
    named = {d["name"]: d for d in figure["layout"]["meta"]["dimensions"]}
    assert (named["r1"]["low"], named["r1"]["high"]) == (2, 4)
    rows_shown = list(csv.DictReader(io.StringIO(as_csv(figure))))
    by_trial = {row["trial"]: row for row in rows_shown}
    assert (by_trial["0"]["r1"], by_trial["1"]["r1"], by_trial["2"]["alpha"]) == ("2.0", "", "")


def test_a_range_over_words_is_no_filter() -> None:
    rows = rows_with([0.1, 0.2], r1=[2, 4], method=["lora", "cdka"])
    assert slice_of(study_alone(), rows, "method")["layout"]["meta"] == {"y": "accuracy"}
    assert slice_of(study_alone(), rows, "r1")["layout"]["meta"] == {"x": "r1", "y": "accuracy"}


def test_charts_as_csv_hold_no_formula() -> None:
    rows = rows_with([0.1, 0.2], method=["=HYPERLINK(1)", "@cmd"])
    for figure in (parallel(study_alone(), rows), slice_of(study_alone(), rows, "method")):
        cells = [cell for row in csv.reader(io.StringIO(as_csv(figure))) for cell in row]
        assert not [cell for cell in cells if cell[:1] in ("=", "@", "+")]
        assert "'=HYPERLINK(1)" in cells


def test_long_searches_have_few_points_to_draw() -> None:
    rows = [
        {
            "number": n,
            "state": TrialState.COMPLETED,
            "phase": TrialPhase.SEARCH,
            "r1": 1 + n % 3,
            "alpha": float(n),
            "accuracy": n / 5000,
        }
        for n in range(5_000)
    ]
    study = cast(Study, SimpleNamespace(spec=StudySpec.model_validate(make_study()), plan=SimpleNamespace(groups={})))
    figure = parallel(study, rows)
    assert {s["mode"] for s in figure["data"]} == {"lines"}
    numbers = {n for s in figure["data"] for n in s["customdata"]} - {None}
    assert len(numbers) <= 300
    assert {r["number"] for r in rows[-75:]} <= numbers, "the best quarter stays"
