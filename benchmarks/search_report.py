"""Make the tables and the figure of :mod:`benchmarks.search` from its lines.

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
    """One line for each arm, table and number of runners, with the newest result for each budget."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for text in file.read_text().splitlines():
        line = json.loads(text)
        key = line["arm"], line["table"], line["runners"]
        line["counts"] = [line["repetitions"]] * len(line["budgets"])
        old = found.get(key, {"budgets": [], "mean": [], "error": [], "counts": []})
        kept = [k for k, budget in enumerate(old["budgets"]) if budget not in line["budgets"]]
        merged = {name: [*line[name], *(old[name][k] for k in kept)] for name in ("budgets", "mean", "error", "counts")}
        found[key] = {**line, **merged}
    return list(found.values())


def at(line: dict[str, Any], budget: int) -> tuple[float, float]:
    """Mean regret and the half width of its 95 % interval, in points, at a budget in trainings."""
    place = line["budgets"].index(budget)
    return line["mean"][place], line["error"][place]


def _cell(line: dict[str, Any] | None, budget: int) -> str:
    return "–" if line is None or budget not in line["budgets"] else "{:.1f} ± {:.1f}".format(*at(line, budget))


def _rows(header: list[str], rows: list[list[str]]) -> str:
    found = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join(found + ["| " + " | ".join(row) + " |" for row in rows])


def table(found: list[dict[str, Any]]) -> str:
    """The regrets with 4 runners as Markdown."""
    tables = sorted({line["table"] for line in found})
    mine = [line for line in found if line["runners"] == RUNNERS]
    rows = []
    for arm in dict.fromkeys(line["arm"] for line in mine):
        by_table = {line["table"]: line for line in mine if line["arm"] == arm}
        first = next(iter(by_table.values()))
        counts = dict(zip(first["budgets"], first.get("counts", []), strict=False))
        count = counts.get(16, first["repetitions"])
        rows.append([arm, str(count), *(_cell(by_table.get(t), b) for t in tables for b in (16, 24))])
    return _rows(["search", "repetitions", *(f"{t}, {b}" for t in tables for b in (16, 24))], rows)


def by_runners(found: list[dict[str, Any]]) -> str:
    """The regrets at 24 trainings with 1, 4 and 16 runners, of the arms that were run with all."""
    tables = sorted({line["table"] for line in found})
    by_key = {(line["arm"], line["table"], line["runners"]): line for line in found}
    columns = [(name, runners) for name in tables for runners in (1, RUNNERS, 16)]
    arms = dict.fromkeys(arm for arm, _, _ in by_key)
    whole = [arm for arm in arms if all((arm, *column) in by_key for column in columns)]
    rows = [[arm, *(_cell(by_key[arm, *column], BUDGET) for column in columns)] for arm in whole]
    return _rows(["search", *(f"{name}, {runners}" for name, runners in columns)], rows)


def by_budget(found: list[dict[str, Any]]) -> str:
    """The regrets with 4 runners at every budget, of the arms that were run with more than two."""
    tables = sorted({line["table"] for line in found})
    mine = {(line["arm"], line["table"]): line for line in found if line["runners"] == RUNNERS}
    budgets = sorted({budget for line in mine.values() for budget in line["budgets"]})
    arms = dict.fromkeys(arm for (arm, _), line in mine.items() if len(line["budgets"]) > 2)
    rows = [[arm, *(_cell(mine.get((arm, t)), b) for t in tables for b in budgets)] for arm in arms]
    return _rows(["search", *(f"{t}, {b}" for t in tables for b in budgets)], rows)


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
    """Print the tables and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path)
    parser.add_argument("svg", type=Path)
    options = parser.parse_args()
    found = lines(options.lines)
    print(table(found), by_runners(found), by_budget(found), sep="\n\n")
    with matplotlib.rc_context({"svg.hashsalt": "cdka"}):
        figure(found).savefig(options.svg, metadata={"Date": None})


if __name__ == "__main__":
    main()
