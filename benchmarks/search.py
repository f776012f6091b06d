"""Replay searches on recorded trainings: the service's samplers and pruners against its peers'.

    python -m benchmarks.search [--repetitions 200] [--runners 1 4 16] [--budgets 16 24] [--only NAME ...]
        [--out search.jsonl]

A simulated clock works through each search with 1, 4 or 16 runners until 16 or 24 trainings' worth of epochs are
spent; a table under ``benchmarks/tables`` gives every evaluation and its seconds (:mod:`benchmarks.tables.replay`).
The regret of a search is the best mean test accuracy of the space less that of the configuration which wins at its end.
Winners are chosen by validation accuracy, as in a real search. The service keeps 6 trainings of the budget for its
recheck; arms without it choose the best single value, as their libraries do.
``python -m benchmarks.search_report search.jsonl`` makes the table and the figure. Arms of Syne Tune need an
environment of their own (:mod:`benchmarks.syne_tune_searcher`).
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import statistics
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .searchers import Make, Next, Searcher, Space
from .tables.replay import Setting, Table, setting

BUDGETS = (16, 24)
TABLES = ("bbc-news", "20-newsgroups")


@dataclass(frozen=True, slots=True)
class Arm:
    """A searcher, and whether its best configurations are trained again before one wins."""

    make: Callable[[], Make]
    recheck: bool = False


def _service(sampler: str, pruner: str, *, start: bool = True, prior: bool = False) -> Callable[[], Make]:
    def load() -> Make:
        from .service_searcher import service

        return service(sampler, pruner, start=start, prior=prior)

    return load


def _optuna(sampler: str, pruner: str = "none") -> Callable[[], Make]:
    def load() -> Make:
        from .optuna_searcher import optuna_gp, optuna_tpe

        return optuna_gp if sampler == "gp" else optuna_tpe(pruner)

    return load


def _syne_tune(name: str) -> Callable[[], Make]:
    def load() -> Make:
        from .syne_tune_searcher import syne_tune

        return syne_tune(name)

    return load


ARMS: dict[str, Arm] = {
    "random": Arm(_service("random", "none", start=False)),
    "random, recheck": Arm(_service("random", "none", start=False), recheck=True),
    "tpe, asha, recheck": Arm(_service("tpe", "asha"), recheck=True),
    "mfgp, asha, recheck": Arm(_service("mfgp", "asha"), recheck=True),
    "mfgp, asha, recheck, prior": Arm(_service("mfgp", "asha", prior=True), recheck=True),
    "mfgp, recheck": Arm(_service("mfgp", "none"), recheck=True),
    "gp, asha, recheck": Arm(_service("gp", "asha"), recheck=True),
    "qmc, asha, recheck": Arm(_service("qmc", "asha"), recheck=True),
    "cmaes, asha, recheck": Arm(_service("cmaes", "asha"), recheck=True),
    "tpe, hyperband, recheck": Arm(_service("tpe", "hyperband"), recheck=True),
    "tpe, median, recheck": Arm(_service("tpe", "median"), recheck=True),
    "tpe, recheck": Arm(_service("tpe", "none"), recheck=True),
    "tpe, asha, recheck, no start": Arm(_service("tpe", "asha", start=False), recheck=True),
    "tpe, asha": Arm(_service("tpe", "asha")),
    "mfgp, asha": Arm(_service("mfgp", "asha")),
    "Optuna TPE": Arm(_optuna("tpe")),
    "Optuna TPE, SuccessiveHalving": Arm(_optuna("tpe", "asha")),
    "Optuna TPE, Hyperband": Arm(_optuna("tpe", "hyperband")),
    "Optuna GP": Arm(_optuna("gp")),
    "Syne Tune ASHA": Arm(_syne_tune("ASHA")),
    "Syne Tune BOHB": Arm(_syne_tune("BOHB")),
    "Syne Tune ASHACQR": Arm(_syne_tune("ASHACQR")),
}


# How many configurations the recheck takes, and how many seeds each: the service's default.
RECHECK = (3, 2)


def space_of(table: Table, predicted: list[tuple[int, int]]) -> Space:
    """The space of a table, and what the predictors of the default would start with."""
    middle = float(np.sqrt(table.rates[0] * table.rates[1]))
    start = [{"r1": a, "r2": b, "r": table.fills[a, b], "alpha": 64.0, "learning_rate": middle} for a, b in predicted]
    alphas = sorted({int(s[2]) for s in table.settings})
    return Space(dict(table.fills), alphas, table.rates, table.epochs, start)


# What guideline and alignment choose on MiniLM's linear layers at the tables' budget (see Table.predicted, which a
# test compares): so that peers need not import our packages.
PREDICTED = [(2, 8), (1, 16)]


class Replay:
    """One simulated search."""

    def __init__(self, table: Table, searcher: Searcher, runners: int, seed: int) -> None:
        self.table, self.searcher, self.runners = table, searcher, runners
        self.random = np.random.default_rng(seed)
        self.curves: dict[int, Any] = {}
        self.settings: dict[int, Setting] = {}
        self.done: dict[int, int] = {}

    def search(self, epochs: int) -> None:
        """Spend so many epochs on the search."""
        clock: list[tuple[float, int, int]] = []
        order, idle, now, started = itertools.count(), self.runners, 0.0, 0

        def begin(number: int) -> None:
            heapq.heappush(clock, (now + self.curves[number].seconds[self.done[number]], next(order), number))

        while True:
            while idle and started < epochs:
                found = self.searcher.ask()
                if found is None:
                    break
                number, params = found
                if number not in self.curves:
                    self.settings[number] = setting(params)
                    self.curves[number] = self.table.draw(self.settings[number], self.random)
                    self.done[number] = 0
                idle, started = idle - 1, started + 1
                begin(number)
            if not clock:
                return
            now, _, number = heapq.heappop(clock)
            self.done[number] += 1
            last = self.done[number] == self.table.epochs
            verdict = self.searcher.tell(number, self.curves[number].validation[self.done[number] - 1], last=last)
            if not last and verdict is Next.CONTINUE and started < epochs:
                started += 1
                begin(number)
            else:
                idle += 1

    def winner(self, recheck: tuple[int, int] | None) -> Setting | None:
        """The configuration that wins: by its best value, or by the mean of the recheck."""
        if recheck is None:
            chosen = self.searcher.chosen()
            return None if chosen is None else self.settings[chosen]
        top, seeds = recheck
        means = {}
        for number in self.searcher.shortlist(top):
            repeated = [self.table.draw(self.settings[number], self.random).validation[-1] for _ in range(seeds)]
            whole = self.done[number] == self.table.epochs
            own = [self.curves[number].validation[-1]] if whole else []
            means[number] = statistics.mean([*own, *repeated])
        return self.settings[max(means, key=lambda n: means[n])] if means else None


def regret(table: Table, arm: Arm, runners: int, seed: int, budget: int) -> float:
    """The regret of one search with a budget in trainings."""
    recheck = RECHECK if arm.recheck else None
    kept = 0 if recheck is None else recheck[0] * recheck[1]
    searcher = arm.make()(space_of(table, PREDICTED), seed, runners)
    replay = Replay(table, searcher, runners, seed)
    replay.search((budget - kept) * table.epochs)
    found = replay.winner(recheck)
    return table.best - (table.truth(found) if found is not None else 0.0)


_TABLES: dict[str, Table] = {}


Job = tuple[str, str, int, int, tuple[int, ...]]


def _work(job: Job) -> list[float]:
    name, arm, runners, repetition, budgets = job
    warnings.simplefilter("ignore")
    if name not in _TABLES:
        _TABLES[name] = Table(name)
    seed = zlib.crc32(f"{name}:{runners}:{repetition}".encode()) % 2**31
    return [regret(_TABLES[name], ARMS[arm], runners, seed, budget) for budget in budgets]


def main() -> None:
    """Run the arms and print their regrets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--runners", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), help="in trainings")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--only", nargs="+", default=[n for n in ARMS if "Syne" not in n], choices=list(ARMS))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="a file to append the regrets to, one line an arm")
    options = parser.parse_args()
    with ProcessPoolExecutor(options.processes) as pool:
        for arm, table, runners in itertools.product(options.only, options.tables, options.runners):
            began = time.perf_counter()
            budgets = tuple(options.budgets)
            jobs: list[Job] = [(table, arm, runners, k, budgets) for k in range(options.repetitions)]
            found = np.array(list(pool.map(_work, jobs, chunksize=max(1, len(jobs) // 20)))) * 100
            error = 1.96 * found.std(axis=0, ddof=1) / len(found) ** 0.5
            shown = "  ".join(f"{m:5.2f} +- {e:4.2f}" for m, e in zip(found.mean(axis=0), error, strict=True))
            print(f"{table:14} {runners:3} {arm:32} {shown}  {time.perf_counter() - began:6.1f} s", flush=True)
            if options.out is not None:
                line = {"table": table, "arm": arm, "runners": runners, "repetitions": len(found)}
                line |= {
                    "budgets": budgets,
                    "mean": found.mean(axis=0).round(4).tolist(),
                    "error": error.round(4).tolist(),
                }
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
