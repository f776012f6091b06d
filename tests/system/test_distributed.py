"""One trial in two processes that share its batches, on a real Ray with gloo (NCCL on GPUs)."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from typing import Any

import psutil
import pytest

from .conftest import System, until

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def known_checkpoint(system: System, study_id: str) -> Any:
    """The checkpoint that the server would resume from."""
    with closing(sqlite3.connect(f"file:{system.server.settings.home}/cdka.db?mode=ro", uri=True)) as database:
        found = "SELECT checkpoint FROM trials WHERE study_id = ? AND checkpoint IS NOT NULL"
        return database.execute(found, (study_id,)).fetchone()


def processes_of_trials() -> list[int]:
    titles = {p.pid: " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])}
    return [pid for pid, title in titles.items() if title.startswith("ray::RayTrainWorker")]


def study(system: System, processes: int, **training: Any) -> Any:
    return system.create(
        resources={"cpus": processes, "processes": processes},
        search={"trials": 1, "concurrency": 1, "pruner": "none", "start": [], "sampler": "tpe"},
        compare={"seeds": 0},
        training={"epochs": 2, **training},
    )


def test_two_processes_train_like_one_and_a_lost_process_costs_an_attempt(system: System) -> None:
    curves = {}
    for processes in (1, 2):
        made = study(system, processes)
        ended = system.ended(made.id, 300)
        assert ended.state == "completed", ended.reason
        (trial,) = system.client.trials(made.id)
        assert trial.resources.get("processes", 1) == processes
        assert trial.artifact is not None
        curves[processes] = [(m.step, m.value) for m in system.client.metrics(trial.id) if m.name == "loss"]
        assert "step 6:" in system.client.log(trial.id).text
    # Each step averages the gradients of the same examples, so the losses agree up to floating-point rounding.
    assert [s for s, _ in curves[1]] == [s for s, _ in curves[2]]
    for (_, one), (_, two) in zip(curves[1], curves[2], strict=True):
        assert two == pytest.approx(one, rel=2e-2)
    # Kill one of the two: the trial is queued again and its second attempt completes it.
    made = study(system, 2, epochs=6, checkpoint_steps=2)
    until(lambda: known_checkpoint(system, made.id), 180, "a checkpoint that the server knows")
    victims = processes_of_trials()
    assert len(victims) == 2
    os.kill(victims[1], signal.SIGKILL)
    ended = system.ended(made.id, 300)
    assert ended.state == "completed", ended.reason
    (trial,) = system.client.trials(made.id)
    assert (trial.state, trial.attempts) == ("completed", 2)
    assert trial.resources["resumed_from"]
    until(lambda: not processes_of_trials(), 60, "the trial's processes to be gone")
