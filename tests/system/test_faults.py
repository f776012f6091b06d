"""Real processes are killed in mid-trial; then the stored trials are checked."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from .conftest import PATIENCE, System, until

pytestmark = [pytest.mark.slow, pytest.mark.ray]
# Long enough that a kill always comes in mid-trial.
LONG = {"epochs": 4}
PLAIN = {"trials": 3, "pruner": "none"}


def test_a_killed_runners_trial_resumes_and_ends_once(system: System) -> None:
    study = system.create(training=LONG, search=PLAIN, compare={"seeds": 0})
    victim = system.running_trial(study.id)
    pids = until(system.runner_pids, 60, "runners")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    ended = system.ended(study.id)
    assert ended.state == "completed"
    trials = list(system.client.trials(study.id))
    assert [t.number for t in trials] == [0, 1, 2]
    assert [t.state for t in trials] == ["completed"] * 3
    again = next(t for t in trials if t.id == victim.id)
    assert again.attempts == 2
    assert again.failure is None
    # Ray replaced the dead processes.
    assert set(system.runner_pids()).isdisjoint(pids)


def test_a_preempted_runner_leaves_a_checkpoint_to_resume_from(system: System) -> None:
    study = system.create(training={"epochs": 6}, search={**PLAIN, "trials": 1}, compare={"seeds": 0})
    victim = system.running_trial(study.id)
    until(lambda: list(system.client.metrics(victim.id)), 120, "a first evaluation")
    pids = system.runner_pids()
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    gone = time.monotonic()
    until(lambda: set(system.runner_pids()).isdisjoint(pids), 30, "the runners to leave")
    assert time.monotonic() - gone < 20 * PATIENCE
    ended = system.ended(study.id)
    assert ended.state == "completed"
    (trial,) = system.client.trials(study.id)
    assert (trial.state, trial.attempts) == ("completed", 2)
    # The second attempt continued where the first one stopped: no evaluation was repeated.
    assert "/checkpoints/001-" in trial.resources["resumed_from"]
    first, second = (system.client.log(trial.id, attempt=k).text for k in (1, 2))
    assert "SIGTERM" in first
    assert "step 6:" in first
    assert "step 6:" not in second
    assert "step 36:" in second
    home = system.server.settings.home
    until(lambda: not list(home.rglob("checkpoints/*")), 150, "the checkpoints to be removed")


def test_a_killed_server_is_restarted_and_its_study_completes(system: System) -> None:
    stopping = threading.Event()
    watcher = threading.Thread(target=system.server.supervise, args=(stopping, print), daemon=True)
    watcher.start()
    try:
        study = system.create(training=LONG, search=PLAIN, compare={"seeds": 1})
        system.running_trial(study.id)
        for _ in range(2):
            pid = system.server.api.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            until(lambda killed=pid: system.server.api.pid not in (None, killed), 60, "a new server")
            until(system.client.ready, 60, "the new server to answer")
        ended = system.ended(study.id)
    finally:
        stopping.set()
        watcher.join()
    assert ended.state == "completed"
    trials = list(system.client.trials(study.id))
    searched = [t for t in trials if t.phase == "search"]
    assert [t.number for t in searched] == [0, 1, 2]
    assert all(t.state == "completed" for t in trials)
    # The outage expired no lease, so no trial started again.
    assert [t.attempts for t in trials] == [1] * len(trials)
    assert ended.confirmation.finished == ended.confirmation.planned > 0
