"""Charts of what parameters did, as Plotly figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..domain.records import Study
from ..results.effects import Effects
from ..results.importances import FEWEST
from ..results.trial_rows import Row, numeric
from .charts import BLUE, GREY, Figure, axes
from .search_charts import completed, nothing, plain, points_of, short, sign_of, varied

_BINS = 12
_SCALE = [[0, "#dbe7ef"], [0.5, "#4f9fc4"], [1, "#0b3c5d"]]


def _scaled(rows: Sequence[Row], name: str) -> bool:
    """Whether values are shown on a logarithmic axis."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return numeric(rows, name) and min(values) > 0 and max(values) / min(values) >= 8


def parallel(study: Study, rows: Sequence[Row]) -> Figure:
    """Every parameter that varied and the result, as parallel axes."""
    rows = completed(study, rows)
    names = varied(study, rows)
    if len(rows) < 2 or not names:
        return nothing("Two completed trials with different parameters are needed.")
    metric = study.spec.objective.metric
    dimensions: list[dict[str, Any]] = []
    meta: list[dict[str, Any]] = []
    for name in (*names, metric):
        values = [row.get(name) for row in rows]
        if not numeric(rows, name) or None in values:
            words = sorted({short(v) if v is not None else "–" for v in values})
            at = [words.index(short(v) if v is not None else "–") for v in values]
            dimensions.append(
                {"label": plain(name), "values": at, "tickvals": list(range(len(words))), "ticktext": words}
            )
            meta.append({"name": name, "words": words})
        elif name != metric and _scaled(rows, name):
            logs = [math.log10(v) for v in values if v is not None]
            ticks = sorted({float(v) for v in values if v is not None})
            ticks = ticks if len(ticks) <= 8 else [ticks[0], ticks[-1]]
            dimensions.append(
                {
                    "label": plain(name),
                    "values": logs,
                    "tickvals": [math.log10(v) for v in ticks],
                    "ticktext": [f"{v:.3g}" for v in ticks],
                }
            )
            meta.append({"name": name, "log": True})
        else:
            dimensions.append({"label": plain(name), "values": values})
            meta.append({"name": name})
    values = [row[metric] for row in rows]
    layout = axes("", "")
    layout["margin"] = {"l": 60, "r": 60, "t": 48, "b": 24}
    layout["meta"] = {"dimensions": meta}
    line = {"color": values, "colorscale": _SCALE, "reversescale": sign_of(study) < 0, "showscale": False}
    return {"data": [{"type": "parcoords", "dimensions": dimensions, "line": line}], "layout": layout}


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
    done = [row for row in done if row.get(name) is not None]
    metric = study.spec.objective.metric
    points = points_of(done, name, metric, varied(study, done))
    numbers = [row["number"] for row in done]
    points["marker"] = {"color": numbers, "colorscale": _SCALE, "size": 8, "line": {"width": 0.5, "color": GREY}}
    layout = axes(plain(name), f"{metric} (validation)")
    if _scaled(done, name):
        layout["xaxis"]["type"] = "log"
    if not numeric(done, name) or len({row[name] for row in done}) <= _BINS:
        layout["xaxis"]["tickvals"] = sorted({row[name] for row in done}, key=_order)
    layout["meta"] = {"x": name, "y": metric}
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
    points = points_of(done, first, second, varied(study, done))
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
        "contours": {"coloring": "heatmap", "showlines": False},
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
        "text": [f"{level.trials} trials" for level in levels],
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
