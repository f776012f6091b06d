"""Make the table and the figure of :mod:`benchmarks.search` from its lines.

python -m benchmarks.search_report benchmarks/search_results.jsonl docs/search-benchmark.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

RUNNERS, BUDGET = 4, 24
_COLORS = {"service": "#0b62a4", "random": "#8a94a3", "peer": "#b45309"}


def kind(arm: str) -> str:
    """Whose an arm is."""
    if arm == "random":
        return "random"
    return "peer" if arm.startswith(("Optuna", "Syne")) else "service"


def lines(file: Path) -> list[dict[str, Any]]:
    """The newest line of each arm, table and number of runners."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for text in file.read_text().splitlines():
        line = json.loads(text)
        found[line["arm"], line["table"], line["runners"]] = line
    return list(found.values())


def at(line: dict[str, Any], budget: int) -> tuple[float, float]:
    """Mean regret and the half width of its 95 % interval, in points, at a budget in trainings."""
    place = line["budgets"].index(budget)
    return line["mean"][place], line["error"][place]


def table(found: list[dict[str, Any]]) -> str:
    """The regrets as Markdown."""
    tables = sorted({line["table"] for line in found})
    rows = ["| search | repetitions | " + " | ".join(f"{t}, {b}" for t in tables for b in (16, 24)) + " |"]
    rows.append("|---" * (2 + 2 * len(tables)) + "|")
    mine = [line for line in found if line["runners"] == RUNNERS]
    for arm in dict.fromkeys(line["arm"] for line in mine):
        by_table = {line["table"]: line for line in mine if line["arm"] == arm}
        cells = [
            "–" if name not in by_table else "{:.1f} ± {:.1f}".format(*at(by_table[name], budget))
            for name in tables
            for budget in (16, 24)
        ]
        count = next(iter(by_table.values()))["repetitions"]
        rows.append(f"| {arm} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def figure(found: list[dict[str, Any]]) -> Figure:
    """Regret of every arm at the budget, one panel a table."""
    tables = sorted({line["table"] for line in found})
    mine = [line for line in found if line["runners"] == RUNNERS]
    values: dict[str, list[float]] = {}
    for line in mine:
        values.setdefault(line["arm"], []).append(at(line, BUDGET)[0])
    complete = [arm for arm, seen in values.items() if len(seen) == len(tables)]
    order = sorted(complete, key=lambda arm: -sum(values[arm]))
    style: Any = {"svg.hashsalt": "cdka", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        made = Figure(figsize=(9.5, 4.2), layout="constrained")
        for axes, name in zip(made.subplots(1, len(tables), sharey=True), tables, strict=True):
            for line in (line for line in mine if line["table"] == name and line["arm"] in order):
                mean, error = at(line, BUDGET)
                color = _COLORS[kind(line["arm"])]
                axes.errorbar(mean, order.index(line["arm"]), xerr=error, fmt="o", color=color, capsize=2, markersize=5)
            axes.set_yticks(range(len(order)), order)
            axes.set_xlim(left=0)
            axes.set_title(name, fontsize=10)
            axes.set_xlabel("points of accuracy behind the best configuration")
        return made


def main() -> None:
    """Print the table and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path)
    parser.add_argument("svg", type=Path)
    options = parser.parse_args()
    found = lines(options.lines)
    print(table(found))
    with matplotlib.rc_context({"svg.hashsalt": "cdka"}):
        figure(found).savefig(options.svg, metadata={"Date": None})


if __name__ == "__main__":
    main()
