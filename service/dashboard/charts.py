"""Chart series as Plotly figures (plain data: the browser draws them)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..domain.comparison import Comparison
from ..domain.records import Observation, Study
from ..domain.states import TrialState
from ..domain.study_spec import Direction

Figure = dict[str, Any]
_BLUE, _ORANGE, _GREY = "#2563eb", "#d97706", "#94a3b8"


def _layout(x: str, y: str) -> dict[str, Any]:
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
    }


def _label(trial: Observation) -> str:
    params = ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.params.items())
    return f"trial {trial.number}: {params}"


# Longer searches are thinned to this many points: a browser draws no more in reasonable time.
MOST_POINTS = 2_000
_SHOWN = frozenset({TrialState.COMPLETED, TrialState.PRUNED, TrialState.WAITING})


def history(study: Study, searched: Sequence[Observation]) -> Figure:
    """The value of each search trial and the best so far. A long search is thinned evenly; every new best is kept."""
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
        _points("completed", done, metric, {"color": _BLUE, "size": 9}),
        _points("waiting", held, metric, {"color": _GREY, "size": 8, "symbol": "circle-open"}),
        _points("pruned", pruned, metric, {"color": _GREY, "size": 8, "symbol": "x"}),
        {
            "type": "scatter",
            "mode": "lines",
            "name": "best so far",
            "x": [number for number, _ in best],
            "y": [value for _, value in best],
            "line": {"color": _ORANGE, "shape": "hv", "width": 2},
            "hoverinfo": "skip",
        },
    ]
    x = "trial" if step == 1 else f"trial (one in {step} and every new best are shown)"
    return {"data": series, "layout": _layout(x, f"{metric} (validation)")}


def _points(name: str, trials: Sequence[Observation], metric: str, marker: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [t.number for t in trials],
        "y": [t.metrics[metric] for t in trials],
        "text": [_label(t) for t in trials],
        "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>",
        "marker": marker,
    }


def comparison(found: Comparison) -> Figure:
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
        "marker": {"color": _GREY, "size": 8, "opacity": 0.7},
        "hovertemplate": "%{x:.4f}<extra></extra>",
    }
    means = {
        "type": "scatter",
        "mode": "markers",
        "name": "mean, 95 % interval",
        "x": [e.mean for e in estimates],
        "y": names,
        "marker": {"color": _BLUE, "size": 12, "symbol": "diamond"},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [0 if e.high is None else e.high - e.mean for e in estimates],
            "arrayminus": [0 if e.low is None else e.mean - e.low for e in estimates],
            "color": _BLUE,
        },
        "hovertemplate": "%{y}: %{x:.4f}<extra></extra>",
    }
    layout = _layout(f"{found.metric} ({found.split})", "")
    if not shown:
        layout["annotations"] = [
            {
                "text": "begins when the search has ended",
                "xref": "paper",
                "yref": "paper",
                "x": 0.5,
                "y": 0.5,
                "showarrow": False,
            }
        ]
        layout["xaxis"]["visible"] = layout["yaxis"]["visible"] = False
    return {"data": [seeds, means], "layout": layout}
