"""Static pictures of reports as SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from threading import Lock
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ..domain.comparison import Comparison
from ..domain.group_results import Group
from ..domain.group_spec import Axis
from ..domain.records import Study, Trial
from ..domain.states import TrialPhase, TrialState
from ..domain.statistics import Estimate
from .worth import Worth

_INK, _BLUE, _ORANGE, _GREY = "#1f2933", "#0b62a4", "#b45309", "#8a94a3"
_STYLE: Any = {
    # Ids within the file depend on its content alone, and text stays text.
    "svg.hashsalt": "cdka",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GREY,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# Longer titles would leave no room for the picture.
_LONGEST = 44
_MOST_POINTS = 2_000


# Matplotlib's settings belong to the process, so pictures are drawn one at a time.
_drawing = Lock()


def candidates(comparison: Comparison) -> str:
    """Each candidate behind the best found: mean and interval, with the margin around 0; empty if there is none."""
    shown = [c for c in comparison.candidates if c.regret is not None and c.name != "best"]
    if not shown:
        return ""
    with _drawing, matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.34 * len(shown)), layout="constrained")
        axes = figure.subplots()
        places = list(range(len(shown)))[::-1]
        margin = next((c.verdict.margin for c in shown if c.verdict and c.verdict.margin is not None), None)
        if margin:
            axes.axvspan(-margin, margin, color=_GREY, alpha=0.18, linewidth=0)
        axes.axvline(0, color=_GREY, linewidth=0.8)
        for place, candidate in zip(places, shown, strict=True):
            found = candidate.regret
            assert found is not None
            color = _ORANGE if candidate.name == comparison.primary else _BLUE
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [place, place], color=color, linewidth=2, solid_capstyle="round")
            axes.plot([found.mean], [place], marker="o", color=color, markersize=5)
        axes.set_yticks(places, [_short(c.title) for c in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlabel(f"{_plain(comparison.metric)} that it is behind the best found, on {comparison.split}")
        return _svg(figure)


def history(study: Study, worth: Worth, trials: Sequence[Trial]) -> str:
    """The completed search trials, the best so far, and the guideline's own trial as a line; empty without any."""
    metric = study.spec.objective.metric
    done = [
        t
        for t in trials
        if t.phase is TrialPhase.SEARCH
        and t.state is TrialState.COMPLETED
        and math.isfinite(t.metrics.get(metric, math.nan))
    ]
    if not done:
        return ""
    step = -(-len(done) // _MOST_POINTS)
    with _drawing, matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        axes = figure.subplots()
        points = done[::step]
        axes.plot([t.number for t in points], [t.metrics[metric] for t in points], "o", color=_GREY, markersize=4)
        best: list[float] = []
        better = max if study.spec.objective.direction == "maximize" else min
        for trial in done:
            best.append(better(best[-1], trial.metrics[metric]) if best else trial.metrics[metric])
        axes.step([t.number for t in done], best, where="post", color=_BLUE, linewidth=1.6, label="best so far")
        if worth.guideline is not None:
            axes.axhline(worth.guideline.value, color=_ORANGE, linewidth=1.2, linestyle="--", label="guideline's trial")
        axes.set_xlabel("trial")
        axes.set_ylabel(f"{_plain(metric)} (validation)")
        axes.legend(frameon=False, loc="best")
        return _svg(figure)


def group(found: Group) -> str:
    """The metric of best found, guideline and LoRA against the budget, or by study; empty before any is confirmed."""
    names = {"best": ("best found", _BLUE), "guideline": ("guideline", _ORANGE), "lora": ("LoRA", _GREY)}
    points = list(found.points)
    by_budget = found.axis is Axis.BUDGETS
    if by_budget:
        points.sort(key=lambda p: p.study.plan.max_parameters)
    lines: dict[str, list[tuple[float, Estimate]]] = {}
    for place, point in enumerate(points):
        for name in names:
            row = point.row(name)
            if row is not None and row.estimate is not None:
                at = float(point.study.plan.max_parameters) if by_budget else float(place)
                lines.setdefault(name, []).append((at, row.estimate))
    if not lines:
        return ""
    with _drawing, matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        axes = figure.subplots()
        for k, (name, seen) in enumerate(lines.items()):
            label, color = names[name]
            # Side by side, so that intervals do not hide each other.
            shift = 1 + 0.012 * (k - 1) if by_budget else 0.06 * (k - 1)
            places = [at * shift if by_budget else at + shift for at, _ in seen]
            ends = [
                (e.mean - e.low, e.high - e.mean) if e.low is not None and e.high is not None else (0.0, 0.0)
                for _, e in seen
            ]
            axes.errorbar(
                places,
                [e.mean for _, e in seen],
                yerr=list(zip(*ends, strict=True)),
                fmt="o-" if by_budget else "o",
                color=color,
                label=label,
                markersize=4.5,
                linewidth=1.4,
                capsize=2,
            )
        if by_budget:
            axes.set_xscale("log")
            axes.set_xticks([float(p.study.plan.max_parameters) for p in points], [_short(p.label) for p in points])
            axes.minorticks_off()
            axes.set_xlabel("budget")
        else:
            axes.set_xticks(range(len(points)), [_short(p.label) for p in points])
        axes.set_ylabel(f"{_plain(found.metric)} (test)")
        axes.legend(frameon=False, loc="best")
        return _svg(figure)


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def _short(text: str) -> str:
    return _plain(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
