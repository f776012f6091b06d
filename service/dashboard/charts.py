"""Chart series as Plotly figures (plain data: the browser draws them)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from ..domain.comparison import Comparison
from ..domain.records import Observation, Study, Trial
from ..domain.states import TrialState
from ..domain.study_spec import Direction

Figure = dict[str, Any]
BLUE, ORANGE, GREY = "#2563eb", "#d97706", "#94a3b8"


def axes(x: str, y: str) -> dict[str, Any]:
    """The layout of every chart, with these titles of its axes."""
    axis = {"gridcolor": "rgba(148,163,184,.25)", "zeroline": False, "automargin": True}
    return {
        "xaxis": {**axis, "title": {"text": x}},
        "yaxis": {**axis, "title": {"text": y}},
        "margin": {"l": 56, "r": 16, "t": 12, "b": 48},
        "legend": {"orientation": "h", "y": 1.12, "x": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "rgba(100,116,139,.8)", "activecolor": BLUE},
        # Zoom and selection stay when the data changes.
        "uirevision": "kept",
    }


def _label(trial: Observation) -> str:
    params = ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.params.items())
    return f"trial {trial.number}: {params}"


# Longer searches are thinned to this many points: a browser draws no more in reasonable time.
MOST_POINTS = 600
_SHOWN = frozenset({TrialState.COMPLETED, TrialState.PRUNED, TrialState.WAITING})


def history(study: Study, searched: Sequence[Observation], guideline: float | None = None) -> Figure:
    """The value of each search trial, the best so far, and the value of the guideline's own trial as a line.

    A long search is thinned evenly; every new best is kept.
    """
    metric = study.spec.objective.metric
    better = max if study.spec.objective.direction is Direction.MAXIMIZE else min
    seen = [t for t in searched if metric in t.metrics and t.state in _SHOWN]
    best: list[tuple[int, float]] = []
    records: set[int] = set()
    for trial in seen:
        if trial.state is TrialState.COMPLETED:
            value = trial.metrics[metric]
            ahead = better(best[-1][1], value) if best else value
            if not best or ahead != best[-1][1]:
                best.append((trial.number, ahead))
                records.add(trial.number)
    if best:
        best.append((seen[-1].number, best[-1][1]))
    step = -(-len(seen) // MOST_POINTS) or 1
    shown = [t for k, t in enumerate(seen) if k % step == 0 or t.number in records]
    done = [t for t in shown if t.state is TrialState.COMPLETED]
    held = [t for t in shown if t.state is TrialState.WAITING]
    pruned = [t for t in shown if t.state is TrialState.PRUNED]
    series = [
        _points("completed", done, metric, {"color": BLUE, "size": 9}),
        _points("waiting", held, metric, {"color": GREY, "size": 8, "symbol": "circle-open"}),
        _points("pruned", pruned, metric, {"color": GREY, "size": 8, "symbol": "x"}),
        {
            "type": "scatter",
            "mode": "lines",
            "name": "best so far",
            "x": [number for number, _ in best],
            "y": [value for _, value in best],
            "line": {"color": ORANGE, "shape": "hv", "width": 2},
            "hoverinfo": "skip",
        },
    ]
    if guideline is not None and seen:
        series.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "the guideline's trial",
                "x": [seen[0].number, seen[-1].number],
                "y": [guideline, guideline],
                "line": {"color": GREY, "dash": "dash", "width": 1.5},
                "hovertemplate": "the guideline's trial: %{y:.4f}<extra></extra>",
            }
        )
    x = "trial" if step == 1 else f"trial (one in {step} and every new best are shown)"
    layout = axes(x, f"{metric} (validation)")
    layout["meta"] = {"x": "number", "y": metric}
    return {"data": series, "layout": layout}


def _points(name: str, trials: Sequence[Observation], metric: str, marker: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [t.number for t in trials],
        "y": [t.metrics[metric] for t in trials],
        "text": [_label(t) for t in trials],
        "customdata": [t.number for t in trials],
        "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>",
        "marker": marker,
    }


def comparison(found: Comparison, waiting: str = "") -> Figure:
    """Candidates on the test split: each seed's value, the mean, and its interval if there is one."""
    shown = [c for c in reversed(found.candidates) if c.estimate is not None]
    names = [c.title for c in shown]
    estimates = [c.estimate for c in shown if c.estimate is not None]
    seeds = {
        "type": "scatter",
        "mode": "markers",
        "name": "one seed",
        "x": [v for c in shown for v in c.values],
        "y": [c.title for c in shown for _ in c.values],
        "marker": {"color": GREY, "size": 8, "opacity": 0.7},
        "hovertemplate": "%{x:.4f}<extra></extra>",
    }
    means = {
        "type": "scatter",
        "mode": "markers",
        "name": "mean, 95 % interval",
        "x": [e.mean for e in estimates],
        "y": names,
        "marker": {"color": BLUE, "size": 12, "symbol": "diamond"},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [0 if e.high is None else e.high - e.mean for e in estimates],
            "arrayminus": [0 if e.low is None else e.mean - e.low for e in estimates],
            "color": BLUE,
        },
        "hovertemplate": "%{y}: %{x:.4f}<extra></extra>",
    }
    layout = axes(f"{found.metric} ({found.split})", "")
    if not shown:
        layout["annotations"] = [
            {
                "text": waiting or "begins when the search has ended",
                "xref": "paper",
                "yref": "paper",
                "x": 0.5,
                "y": 0.5,
                "showarrow": False,
            }
        ]
        layout["xaxis"]["visible"] = layout["yaxis"]["visible"] = False
    return {"data": [seeds, means], "layout": layout}


def differences(found: Comparison, waiting: str = "") -> Figure:
    """How far each candidate is behind the best found, with its interval, the margin as a band, and each seed."""
    shown = [
        c
        for c in reversed(found.candidates)
        if c.regret is not None and c.name != "best" and not any(f.startswith("identical") for f in c.flags)
    ]
    if not shown:
        return comparison(found, waiting)
    margin = next((c.verdict.margin for c in shown if c.verdict is not None and c.verdict.margin is not None), None)
    series = []
    for name, primary in (("further candidates", False), ("primary question", True)):
        mine = [c for c in shown if (c.name == found.primary) is primary]
        regrets = [c.regret for c in mine if c.regret is not None]
        if not mine:
            continue
        color = ORANGE if primary else BLUE
        series.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [r.mean for r in regrets],
                "y": [c.title for c in mine],
                "text": [c.verdict.sentence if c.verdict else "" for c in mine],
                "marker": {"color": color, "size": 11, "symbol": "diamond"},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [0 if r.high is None else r.high - r.mean for r in regrets],
                    "arrayminus": [0 if r.low is None else r.mean - r.low for r in regrets],
                    "color": color,
                },
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    layout = axes(f"difference in {found.metric}", "")
    layout["yaxis"]["categoryorder"] = "array"
    layout["yaxis"]["categoryarray"] = [c.title for c in shown]
    line = {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": GREY, "width": 1}}
    layout["shapes"] = [line]
    if margin:
        band = {"type": "rect", "x0": -margin, "x1": margin, "y0": 0, "y1": 1, "yref": "paper"}
        layout["shapes"] += [{**band, "fillcolor": GREY, "opacity": 0.18, "line": {"width": 0}, "layer": "below"}]
    return {"data": series, "layout": layout}


def curve(study: Study, trial: Trial, searched: Sequence[Observation]) -> Figure:
    """A trial's evaluations beside the median of the others at each."""
    metric = study.spec.pruning_metric
    others = [t for t in searched if t.number != trial.number and t.curve]
    longest = max((len(t.curve) for t in others), default=0)
    medians = [median(t.curve[k] for t in others if len(t.curve) > k) for k in range(longest)]
    series: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "median of the others",
            "x": list(range(1, longest + 1)),
            "y": medians,
            "line": {"color": GREY, "dash": "dot"},
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "this trial",
            "x": list(range(1, len(trial.curve) + 1)),
            "y": list(trial.curve),
            "line": {"color": BLUE},
        },
    ]
    return {"data": series, "layout": axes("evaluation", metric)}


_LINES = (BLUE, ORANGE, "#0f766e", "#9333ea", "#be123c", "#4d7c0f", "#0891b2", "#a16207")


def curves(study: Study, trials: Sequence[Trial]) -> Figure:
    """The evaluations of several trials, one line each."""
    series = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"trial {trial.number}",
            "x": list(range(1, len(trial.curve) + 1)),
            "y": list(trial.curve),
            "customdata": [trial.number] * len(trial.curve),
            "line": {"color": _LINES[k % len(_LINES)], "dash": "solid" if k < len(_LINES) else "dot"},
        }
        for k, trial in enumerate(trials)
    ]
    return {"data": series, "layout": axes("evaluation", study.spec.pruning_metric)}
