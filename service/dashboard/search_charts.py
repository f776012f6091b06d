"""Charts of a search's trials as Plotly figures: each from rows, so that a filter holds for all of them alike.

``layout.meta`` names what lies on the axes: a range that is marked in a chart becomes a filter of these names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..domain.pareto import pareto_front
from ..domain.records import Study, Trial
from ..domain.states import TrialState
from ..domain.study_spec import Direction
from ..results.trial_rows import Row, split_of
from .charts import BLUE, GREY, MOST_POINTS, ORANGE, Figure, axes

# A point is an element of the page, and a line costs a browser more.
MOST_SHOWN = 500
MOST_LINES = 300
_MOST_BARS = 500


def nothing(text: str) -> Figure:
    """An empty chart that says why it is empty."""
    layout = axes("", "")
    layout["xaxis"]["visible"] = layout["yaxis"]["visible"] = False
    layout["annotations"] = [{"text": text, "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}]
    return {"data": [], "layout": layout}


def completed(study: Study, rows: Sequence[Row]) -> list[Row]:
    """The trials with a value on the validation split."""
    metric = study.spec.objective.metric
    return [
        row
        for row in rows
        if row["state"] is TrialState.COMPLETED
        and split_of(row) == "validation"
        and isinstance(row.get(metric), int | float)
        and math.isfinite(row[metric])
    ]


def thinned(study: Study, rows: Sequence[Row], most: int) -> list[Row]:
    """At most ``most`` rows: a quarter of them the best, the others evenly spaced."""
    if len(rows) <= most:
        return list(rows)
    metric, sign = study.spec.objective.metric, sign_of(study)
    best = {row["number"] for row in sorted(rows, key=lambda row: -sign * row[metric])[: most // 4]}
    step = -(-len(rows) // (most - most // 4))
    return [row for k, row in enumerate(rows) if k % step == 0 or row["number"] in best]


def sign_of(study: Study) -> float:
    """1 where more of the objective is better, else -1."""
    return 1.0 if study.spec.objective.direction is Direction.MAXIMIZE else -1.0


def label(row: Row, names: Sequence[str]) -> str:
    """The configuration, as it is shown beside a point."""
    told = [f"{n}={short(row[n])}" for n in names if row.get(n) is not None]
    return f"trial {row['number']}: {', '.join(told)}"


def short(value: Any) -> str:
    """A value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def varied(study: Study, rows: Sequence[Row]) -> list[str]:
    """The parameters of which the trials have several values, in the order of the search space."""
    sizes = [f"{g}.{s}" for g in study.plan.groups for s in ("r1", "r2", "r")] or ["r1", "r2", "r"]
    names = dict.fromkeys(["method", *sizes, *study.spec.search_space.parameters()])
    return [n for n in names if len({str(row[n]) for row in rows if row.get(n) is not None}) > 1]


def points_of(rows: Sequence[Row], x: str, y: str, names: Sequence[str]) -> dict[str, Any]:
    """A series with a point for each trial; ``names`` are told beside it."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [row[x] if isinstance(row[x], int | float) else str(row[x]) for row in rows],
        "y": [row[y] for row in rows],
        "text": [label(row, names) for row in rows],
        "customdata": [row["number"] for row in rows],
        "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>",
        "showlegend": False,
    }


def plain(name: str) -> str:
    """A name as it is shown."""
    return name.replace("_", " ")


def distribution(study: Study, rows: Sequence[Row]) -> Figure:
    """The share of completed trials that reached at most a value."""
    metric = study.spec.objective.metric
    values = sorted(row[metric] for row in completed(study, rows))
    if not values:
        return nothing("No trial has completed yet.")
    # Of a long search every k-th step, and the last.
    step = -(-len(values) // MOST_SHOWN)
    at = sorted({*range(0, len(values), step), len(values) - 1})
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": [values[k] for k in at],
        "y": [(k + 1) / len(values) for k in at],
        "line": {"shape": "hv", "color": BLUE},
        "hovertemplate": "%{y:.0%} reached at most %{x:.4f}<extra></extra>",
        "showlegend": False,
    }
    layout = axes(f"{metric} (validation)", "share of trials")
    layout["yaxis"] |= {"tickformat": ".0%", "range": [0, 1.02]}
    layout["meta"] = {"x": metric}
    return {"data": [line], "layout": layout}


def evaluations(study: Study, rows: Sequence[Row]) -> Figure:
    """The pruning metric by evaluation: completed trials, and faded those that were pruned or wait."""
    metric = study.spec.objective.metric
    seen = [row for row in rows if row.get("curve") and split_of(row) == "validation"]
    if not seen:
        return nothing("No trial has been evaluated yet.")
    having = [row for row in seen if isinstance(row.get(metric), int | float)]
    shown = thinned(study, having, MOST_LINES) + [row for row in seen if row.get(metric) is None][-MOST_LINES:]
    series = []
    for name, mine in (
        ("pruned, waiting or ended early", [r for r in shown if r["state"] is not TrialState.COMPLETED]),
        ("completed", [r for r in shown if r["state"] is TrialState.COMPLETED]),
    ):
        # One series with gaps between its lines: a browser draws it as fast as a single line.
        x: list[int | None] = []
        y: list[float | None] = []
        numbers: list[int | None] = []
        for row in mine:
            x += [*range(1, len(row["curve"]) + 1), None]
            y += [*row["curve"], None]
            numbers += [*([row["number"]] * len(row["curve"])), None]
        full = name == "completed"
        line = {"color": BLUE if full else GREY, "width": 1.2}
        series.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(x) <= MOST_POINTS else "lines",
                "name": name,
                "x": x,
                "y": y,
                "customdata": numbers,
                "line": line,
                "marker": {"size": 4},
                "opacity": 0.75 if full else 0.35,
                "hovertemplate": "trial %{customdata}: %{y:.4f}<extra></extra>",
            }
        )
    return {"data": series, "layout": axes("evaluation", study.spec.pruning_metric)}


def regret(study: Study, rows: Sequence[Row]) -> Figure:
    """How far the best so far was behind the best found in the end."""
    metric, sign = study.spec.objective.metric, sign_of(study)
    done = [r for r in rows if r["state"] is TrialState.COMPLETED and split_of(r) == "validation" and metric in r]
    if len(done) < 2:
        return nothing("Two completed trials are needed.")
    best = max(sign * row[metric] for row in done)
    x, y, so_far = [], [], -math.inf
    for row in done:
        if sign * row[metric] > so_far:
            so_far = sign * row[metric]
            x.append(row["number"])
            y.append(best - so_far)
    x.append(done[-1]["number"])
    y.append(best - so_far)
    line: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "line": {"shape": "hv", "color": ORANGE},
    }
    layout = axes("trial", f"{metric} behind the best found")
    layout["yaxis"]["rangemode"] = "tozero"
    layout["meta"] = {"x": "number"}
    return {"data": [line | {"hovertemplate": "trial %{x}: %{y:.4f}<extra></extra>"}], "layout": layout}


def pareto(study: Study, rows: Sequence[Row], parameters: Mapping[int, int]) -> Figure:
    """Quality against adapter parameters, or the first two objectives of several, with the Pareto front."""
    objectives = study.spec.all_objectives
    metric = objectives[0].metric
    done = completed(study, rows)
    if len(objectives) > 1:
        across, better = objectives[1].metric, -1.0 if objectives[1].direction is Direction.MAXIMIZE else 1.0
        points = [(row, row[across]) for row in done if isinstance(row.get(across), int | float)]
    else:
        across, better = "parameters", 1.0
        points = [(row, parameters[row["number"]]) for row in done if row["number"] in parameters]
    if not points:
        return nothing("No trial has completed yet.")
    front = set(pareto_front([(-sign_of(study) * row[metric], better * cost) for row, cost in points]))
    names = varied(study, done)
    series = []
    for title, color, kept in (("dominated", GREY, False), ("Pareto front", ORANGE, True)):
        mine = sorted((p for k, p in enumerate(points) if (k in front) is kept), key=lambda p: p[1])
        if not kept:
            shown = {row["number"] for row in thinned(study, [row for row, _ in mine], MOST_SHOWN)}
            mine = [p for p in mine if p[0]["number"] in shown]
        drawn = points_of([{**row, across: cost} for row, cost in mine], across, metric, names)
        drawn |= {"name": title, "showlegend": True, "marker": {"color": color, "size": 8}}
        if kept:
            drawn |= {"type": "scatter", "mode": "lines+markers", "line": {"shape": "hv", "color": color}}
        series.append(drawn)
    layout = axes(plain(across), f"{metric} (validation)")
    if across == "parameters":
        budget = study.plan.max_parameters
        layout["shapes"] = [
            {
                "type": "line",
                "x0": budget,
                "x1": budget,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": GREY, "dash": "dash"},
            }
        ]
        layout["annotations"] = [
            {"x": budget, "y": 1, "yref": "paper", "text": "budget", "showarrow": False, "xanchor": "right"}
        ]
        layout["meta"] = {"y": metric}
    else:
        layout["meta"] = {"x": across, "y": metric}
    return {"data": series, "layout": layout}


def predicted(study: Study, rows: Sequence[Row], scores: Mapping[tuple[int, int, int], float], name: str) -> Figure:
    """What was observed against a predictor's score."""
    metric = study.spec.objective.metric
    done = []
    for row in thinned(study, completed(study, rows), MOST_SHOWN):
        structure = study.plan.ranked(row)
        if structure is not None and structure in scores and row["method"] == "cdka":
            done.append({**row, "score": scores[structure]})
    if not done:
        return nothing(f"No completed trial has a structure that {name} ranked.")
    points = points_of(done, "score", metric, varied(study, done))
    points["marker"] = {"color": BLUE, "size": 8}
    layout = axes(f"score of {name}", f"{metric} (validation)")
    layout["meta"] = {"y": metric}
    return {"data": [points], "layout": layout}


def timeline(trials: Sequence[Trial]) -> Figure:
    """When each of the newest trials ran, and on which runner."""
    ran = [t for t in trials if t.started_at is not None and t.finished_at is not None][-_MOST_BARS:]
    if not ran:
        return nothing("No trial has ended yet.")
    colors = {TrialState.COMPLETED: BLUE, TrialState.PRUNED: GREY, TrialState.FAILED: "#b42318"}
    series = []
    for state in dict.fromkeys(t.state for t in ran):
        mine = [t for t in ran if t.state is state]
        series.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": str(state),
                "base": [t.started_at.isoformat() for t in mine if t.started_at],
                "x": [
                    1000 * (t.finished_at - t.started_at).total_seconds()
                    for t in mine
                    if t.finished_at and t.started_at
                ],
                "y": [str(t.resources.get("runner") or "not recorded") for t in mine],
                "text": [f"trial {t.number}, {t.phase}" for t in mine],
                "customdata": [t.number for t in mine],
                "textposition": "none",
                "marker": {"color": colors.get(state, ORANGE), "line": {"width": 1, "color": "rgba(255,255,255,.5)"}},
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    layout = axes("time (UTC)", "")
    layout["xaxis"]["type"] = "date"
    layout["barmode"] = "overlay"
    return {"data": series, "layout": layout}


def _milliseconds(trial: Trial) -> float:
    assert trial.started_at is not None
    assert trial.finished_at is not None
    return 1000 * (trial.finished_at - trial.started_at).total_seconds()
