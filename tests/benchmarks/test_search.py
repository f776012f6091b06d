"""The replay of searches runs, repeats itself, and its table is true to what was recorded."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.search import ARMS, PREDICTED, regret, space_of
from benchmarks.search_report import table as report_table
from benchmarks.tables.record import EPOCHS, SEEDS, grid
from benchmarks.tables.replay import Table


@pytest.fixture(scope="module", params=["bbc-news", "20-newsgroups"])
def table(request: pytest.FixtureRequest) -> Table:
    return Table(request.param)


def test_every_configuration_of_the_grid_was_trained_with_every_seed(table: Table) -> None:
    assert table.trainings == len(grid()) * len(SEEDS) == 360
    assert table.epochs == EPOCHS
    assert len(table.settings) == len(grid())


def test_what_searches_start_with_is_what_the_predictors_choose(table: Table) -> None:
    assert table.predicted() == PREDICTED


def test_the_surface_interpolates_better_than_the_seeds_scatter(table: Table) -> None:
    error, noise = table.leave_one_out()
    assert error < 1.2 * noise
    assert 0.8 < table.best < 1


def test_draws_scatter_around_the_surface(table: Table) -> None:
    order = np.random.default_rng(0)
    wanted = table.settings[40]
    draws = [table.draw(wanted, order) for _ in range(50)]
    assert all(len(d.validation) == len(d.test) == EPOCHS for d in draws)
    assert abs(np.mean([d.test[-1] for d in draws]) - table.truth(wanted)) < 0.15


@pytest.mark.parametrize("arm", ["random", "tpe, asha, recheck", "mfgp, recheck", "Optuna TPE, SuccessiveHalving"])
def test_a_replay_is_the_same_again(table: Table, arm: str) -> None:
    first, again = (regret(table, ARMS[arm], runners=4, seed=3, budget=12) for _ in range(2))
    assert first == again
    assert 0 <= first < table.best
    assert space_of(table, PREDICTED).start[0]["alpha"] == 64.0


def test_the_table_of_results_is_markdown() -> None:
    line = {"arm": "random", "table": "bbc-news", "runners": 4, "repetitions": 2, "budgets": [16, 24]}
    made = report_table([{**line, "mean": [9.0, 8.0], "error": [1.0, 0.5]}])
    assert made.splitlines()[-1] == "| random | 2 | 9.0 ± 1.0 | 8.0 ± 0.5 |"
