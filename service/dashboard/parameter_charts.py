"""Charts of what parameters did, as Plotly figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..domain.records import Study
from ..results.effects import Effects
from ..results.importances import FEWEST
from ..results.trial_rows import Row, numeric
from .charts import BLUE, GREY, Figure, axes
from .search_charts import MOST_LINES, MOST_SHOWN, completed, nothing, plain, points_of, short, sign_of, thinned, varied

_BINS = 12
_MOST_TICKS = 7
# Lines whose ends are marked by points, each an element of the page.
_MOST_MARKED = 40
# From worst to best, so that the best lie on top.
_SHADES = ("#cfd8e3", "#9fb8cf", "#6a9cc0", "#3a7ca8", "#0b3c5d")
_SCALE = [[0, "#dbe7ef"], [0.5, "#4f9fc4"], [1, "#0b3c5d"]]


def _scaled(rows: Sequence[Row], name: str) -> bool:
    """Whether values are shown on a logarithmic axis."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return numeric(rows, name) and min(values) > 0 and max(values) / min(values) >= 8


@dataclass(frozen=True, slots=True)
class _Axis:
    """A parallel axis: its name, the places of its values from 0 to 1, and what stands beside its ends."""

    name: str
    places: list[float | None]
    ticks: list[tuple[float, str]]
    meta: dict[str, Any]


def parallel(study: Study, rows: Sequence[Row]) -> Figure:
    """Every parameter that varied and the result, as parallel axes; darker lines are better.

    Lines of Plotly's own kind need WebGL code that is compiled in the browser, which our content security policy
    forbids. ``layout.meta.dimensions`` says what a marked part of an axis means.
    """
    rows = thinned(study, completed(study, rows), MOST_LINES)
    names = varied(study, rows)
    if len(rows) < 2 or not names:
        return nothing("Two completed trials with different parameters are needed.")
    metric = study.spec.objective.metric
    axes_of = [_axis(rows, name, logarithmic=name != metric and _scaled(rows, name)) for name in (*names, metric)]
    reached = [p or 0.0 for p in axes_of[-1].places]
    goodness = reached if sign_of(study) > 0 else [1 - p for p in reached]
    series = []
    for shade in range(len(_SHADES)):
        mine = [k for k, good in enumerate(goodness) if min(int(good * len(_SHADES)), len(_SHADES) - 1) == shade]
        x: list[int | None] = []
        y: list[float | None] = []
        numbers: list[int | None] = []
        texts: list[str | None] = []
        for k in mine:
            x += [*range(len(axes_of)), None]
            y += [*(axis.places[k] for axis in axes_of), None]
            numbers += [*([rows[k]["number"]] * len(axes_of)), None]
            texts += [*(f"{plain(axis.name)} {short(rows[k].get(axis.name, '–'))}" for axis in axes_of), None]
        series.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(rows) <= _MOST_MARKED else "lines",
                "x": x,
                "y": y,
                "text": texts,
                "customdata": numbers,
                "line": {"color": _SHADES[shade], "width": 1 + shade / 3},
                "marker": {"size": 4},
                "hovertemplate": "trial %{customdata}: %{text}<extra></extra>",
                "showlegend": False,
            }
        )
    layout = axes("", "")
    layout["margin"] = {"l": 48, "r": 48, "t": 44, "b": 40}
    layout["dragmode"] = "select"
    layout["xaxis"] |= {
        "tickvals": list(range(len(axes_of))),
        "ticktext": [plain(axis.name) for axis in axes_of],
        "range": [-0.3, len(axes_of) - 0.7],
    }
    layout["yaxis"] |= {"visible": False, "range": [-0.05, 1.05]}
    layout["annotations"] = [
        {"x": k, "y": place, "text": text, "showarrow": False, "xanchor": "right", "xshift": -5, "font": {"size": 10}}
        for k, axis in enumerate(axes_of)
        for place, text in axis.ticks
    ]
    layout["meta"] = {"dimensions": [axis.meta for axis in axes_of]}
    return {"data": series, "layout": layout}


def _axis(rows: Sequence[Row], name: str, *, logarithmic: bool) -> _Axis:
    """An axis; a trial without a value has no place on it."""
    values = [row.get(name) for row in rows]
    having = [v for v in values if v is not None]
    if not numeric(rows, name):
        words = sorted({str(v) for v in having})
        last = max(1, len(words) - 1)
        places = [None if v is None else words.index(str(v)) / last for v in values]
        return _Axis(name, places, [(k / last, w) for k, w in enumerate(words)], {"name": name, "words": words})
    scale: Callable[[float], float] = math.log10 if logarithmic else float
    moved = [scale(v) for v in having]
    low, high = min(moved), max(moved)
    different = sorted({float(v) for v in having})
    shown = different if len(different) <= _MOST_TICKS else [different[0], different[-1]]

    def place(value: float) -> float:
        return (value - low) / (high - low) if high > low else 0.5

    ticks = [(place(scale(v)), f"{v:.4g}") for v in shown]
    places = [None if v is None else place(scale(v)) for v in values]
    return _Axis(name, places, ticks, {"name": name, "low": low, "high": high, "log": logarithmic})


def chosen(study: Study, rows: Sequence[Row], asked: str | None, default: int) -> str | None:
    """The parameter that a reader asked for, or one that varied."""
    names = varied(study, completed(study, rows))
    if asked in names:
        return asked
    return names[min(default, len(names) - 1)] if names else None


def slice_of(study: Study, rows: Sequence[Row], x: str | None) -> Figure:
    """The result against one parameter; darker points are later trials."""
    done = completed(study, rows)
    name = chosen(study, rows, x, 1)
    if name is None:
        return nothing("No parameter has varied yet.")
    done = thinned(study, [row for row in done if row.get(name) is not None], MOST_SHOWN)
    metric = study.spec.objective.metric
    points = points_of(done, name, metric, varied(study, done))
    numbers = [row["number"] for row in done]
    points["marker"] = {"color": numbers, "colorscale": _SCALE, "size": 8, "line": {"width": 0.5, "color": GREY}}
    layout = axes(plain(name), f"{metric} (validation)")
    if _scaled(done, name):
        layout["xaxis"]["type"] = "log"
    if not numeric(done, name) or len({row[name] for row in done}) <= _BINS:
        layout["xaxis"]["tickvals"] = sorted({row[name] for row in done}, key=_order)
    # A marked range of words has no meaning of its own.
    layout["meta"] = {"x": name, "y": metric} if numeric(done, name) else {"y": metric}
    return {"data": [points], "layout": layout}


def _order(value: Any) -> Any:
    return (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))


def contour(study: Study, rows: Sequence[Row], x: str | None, y: str | None) -> Figure:
    """The mean result over two parameters, of numbers in ranges of equal size, and the trials."""
    done = completed(study, rows)
    names = [n for n in varied(study, done) if numeric(done, n)]
    first = x if x in names else (names[0] if names else None)
    others = [n for n in names if n != first]
    second = y if y in others else (others[0] if others else None)
    if first is None or second is None:
        return nothing("Two parameters that are numbers must have varied.")
    done = [row for row in done if row.get(first) is not None and row.get(second) is not None]
    metric = study.spec.objective.metric
    across, at_x = _bins(done, first)
    up, at_y = _bins(done, second)
    total, count = np.zeros((len(up), len(across))), np.zeros((len(up), len(across)))
    for row, k, j in zip(done, at_x, at_y, strict=True):
        total[j, k] += row[metric]
        count[j, k] += 1
    means = [
        [float(total[j, k] / count[j, k]) if count[j, k] else None for k in range(len(across))] for j in range(len(up))
    ]
    points = points_of(thinned(study, done, MOST_SHOWN), first, second, varied(study, done))
    points["marker"] = {"color": "rgba(15,23,42,.75)", "size": 5}
    points["hovertemplate"] = "%{text}<extra></extra>"
    layout = axes(plain(first), plain(second))
    for name, axis in ((first, "xaxis"), (second, "yaxis")):
        if _scaled(done, name):
            layout[axis]["type"] = "log"
    layout["meta"] = {"x": first, "y": second}
    field = {
        "type": "contour",
        "x": across,
        "y": up,
        "z": means,
        "connectgaps": True,
        "colorscale": _SCALE,
        "reversescale": sign_of(study) < 0,
        "contours": {"coloring": "heatmap"},
        "line": {"width": 0},
        "colorbar": {"title": {"text": metric}, "thickness": 12},
        "hoverinfo": "skip",
    }
    return {"data": [field, points], "layout": layout}


def _bins(rows: Sequence[Row], name: str) -> tuple[list[float], list[int]]:
    """Centres of the values' ranges, and the range of each row."""
    values = [float(row[name]) for row in rows]
    different = sorted(set(values))
    if len(different) <= _BINS:
        return different, [different.index(v) for v in values]
    scale: Callable[[float], float] = math.log10 if _scaled(rows, name) else float
    moved = [scale(v) for v in values]
    edges = np.linspace(min(moved), max(moved), _BINS + 1)
    at = np.clip(np.searchsorted(edges, moved, side="right") - 1, 0, _BINS - 1).tolist()
    middle = (edges[:-1] + edges[1:]) / 2
    centres = [float(10**m) if scale is math.log10 else float(m) for m in middle]
    return centres, at


def importances(effects: Effects) -> Figure:
    """The share of each parameter in telling good trials from others."""
    if not effects.importances:
        return nothing(f"Importances need {FEWEST} completed trials that differ; there are {effects.trials}.")
    names = list(effects.importances)[::-1]
    bar = {
        "type": "bar",
        "orientation": "h",
        "x": [effects.importances[n] for n in names],
        "y": [plain(n) for n in names],
        "marker": {"color": BLUE},
        "hovertemplate": "%{x:.0%}<extra></extra>",
    }
    layout = axes("importance (PED-ANOVA)", "")
    layout["xaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    return {"data": [bar], "layout": layout}


def effect(study: Study, effects: Effects, x: str | None) -> Figure:
    """The mean at each value of a parameter, adjusted for the others, with simultaneous intervals."""
    if not effects.means:
        return nothing("The completed trials do not determine the means yet.")
    name = x if x in effects.means else next(iter(effects.means))
    levels = effects.means[name]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": [level.level for level in levels],
        "y": [level.mean for level in levels],
        "text": [f"{level.trials} trials, interval {level.low:.4f} to {level.high:.4f}" for level in levels],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [level.high - level.mean for level in levels],
            "arrayminus": [level.mean - level.low for level in levels],
        },
        "marker": {"color": BLUE, "size": 10},
        "hovertemplate": "%{x}: %{y:.4f}, %{text}<extra></extra>",
        "showlegend": False,
    }
    layout = axes(plain(name), f"{study.spec.objective.metric} (validation), adjusted mean")
    layout["xaxis"]["type"] = "category"
    return {"data": [points], "layout": layout}
