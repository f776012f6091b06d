"""A Ray cluster of several nodes: lost nodes, restarted pools, server outages, and trials that hang or crash."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from service.cli.demo import demo_study, prepare_data
from service.cli.processes import Process, Server, child_environment, free_port
from service.client import Client
from service.settings import Settings

from .conftest import SLICE, until

# Distinguishes our processes from those of other clusters.
MARK = "CDKA_TEST_CLUSTER"
pytestmark = [pytest.mark.slow, pytest.mark.ray]
ROOT = Path(__file__).parents[2]
TASKS = '{"hanging": "tests.system.broken_tasks:Hanging", "deadly": "tests.system.broken_tasks:Deadly"}'
JUDGED = {"architecture": "sequence_classification", "metrics": {"accuracy": "maximize"}}
# A node that dies is noticed within seconds.
NOTICED = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "0",
}


class ClusterSystem:
    """API and pool in separate processes, as in production. The head has no CPUs, two nodes have one each."""

    def __init__(self, home: Path) -> None:
        token = home / "ray-token"
        token.write_text(secrets.token_hex(32))
        self.environment = {
            MARK: uuid4().hex,
            **NOTICED,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "CDKA_TASKS": TASKS,
            "CDKA_HUNG_SECONDS": "5",
            "CDKA_CHECKPOINT_SECONDS": "0",
            "CDKA_RUNNER_IDLE_SECONDS": "600",
            "PYTHONPATH": str(ROOT),
        }
        os.environ.update(self.environment)
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80_000_000},
        )
        self.nodes = [self.cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
        data = home / "data"
        prepare_data(data, SLICE)
        self.settings = Settings(
            home=home, database_url="", artifacts_url="", data_dirs=[data], port=free_port(28765), lease_seconds=8
        )
        self.server = Server(self.settings, with_pool=False)
        self.server.start()
        worker = {
            **child_environment(self.settings),
            "RAY_ADDRESS": self.cluster.address,
            "CDKA_TOKEN_FILE": str(home / "worker-token"),
        }
        self.pool = Process("pool", ["workers"], worker, home / "logs" / "pool.log")
        self.pool.start()
        self.client = Client(self.settings.server_url, (home / "admin-token").read_text().strip(), attempts=8)

    def create(self, **sections: Any) -> Any:
        study = demo_study(SLICE)
        study["search"] |= {"trials": 1, "concurrency": 1, "pruner": "none", "recheck": "none"}
        study["compare"] = {"seeds": 0}
        for name, value in sections.items():
            study[name] = {**study.get(name, {}), **value}
        return self.client.create_study(study)

    def ended(self, study_id: str, seconds: float = 300) -> Any:
        return until(
            lambda: s if (s := self.client.study(study_id)).state in ("completed", "failed") else None,
            seconds,
            "the study to end",
        )

    def trials(self, study_id: str) -> list[Any]:
        return list(self.client.trials(study_id))

    def evaluated(self, trial_id: str, steps: int = 1) -> Any:
        """Wait until ``steps`` evaluations of a trial have been reported."""
        return until(lambda: len({m.step for m in self.client.metrics(trial_id)}) >= steps, 180, f"{steps} evaluations")

    def runners(self) -> dict[int, int]:
        """Process ids of this cluster's runners, each with the id of the node process that started it."""
        found = {}
        for process in psutil.process_iter(["cmdline", "ppid"]):
            if " ".join(process.info["cmdline"] or []).startswith("ray::RunnerActor"):
                with contextlib.suppress(psutil.Error):
                    # Others on this machine may run clusters of their own.
                    if process.environ().get(MARK) == self.environment[MARK]:
                        found[process.pid] = process.info["ppid"]
        return found

    def kill(self, process: Process) -> None:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: process.pid is None, 10, "the process to be gone")

    def stop(self) -> None:
        self.pool.stop()
        self.client.close()
        self.server.stop()
        self.cluster.shutdown()
        until(lambda: not self.runners(), 30, "the runners to be gone")
        for name in self.environment:
            os.environ.pop(name, None)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterSystem]:
    made = ClusterSystem(tmp_path_factory.mktemp("cluster"))
    yield made
    made.stop()


def test_a_lost_nodes_trial_resumes_elsewhere_from_its_checkpoint(system: ClusterSystem) -> None:
    study = system.create(training={"epochs": 8}, search={"trials": 2, "concurrency": 2})
    until(lambda: [t.state for t in system.trials(study.id)] == ["running"] * 2, 120, "two running trials")
    for trial in system.trials(study.id):
        # Once the second evaluation is reported, the server knows the first one's checkpoint.
        system.evaluated(trial.id, 2)
    pids = system.runners()
    assert len(set(pids.values())) == 2, "a runner on each node"
    lost = system.nodes.pop()
    system.cluster.remove_node(lost, allow_graceful=False)
    system.nodes.append(system.cluster.add_node(num_cpus=1, object_store_memory=80_000_000))
    assert system.ended(study.id).state == "completed"
    trials = system.trials(study.id)
    assert [t.state for t in trials] == ["completed"] * 2
    assert sorted(t.attempts for t in trials) == [1, 2], "the other trial was not touched"
    again = next(t for t in trials if t.attempts == 2)
    assert "/checkpoints/001-" in again.resources["resumed_from"]
    # No evaluation is stored twice, and work from before the loss was not repeated.
    steps = [m.step for m in system.client.metrics(again.id) if m.name == "accuracy"]
    assert steps == [6 * k for k in range(1, 9)]
    assert again.failure is None
    # Ray starts the lost runner again; the next test counts runners.
    until(lambda: len(system.runners()) == 2, 120, "the lost node's runner on the new node")


def test_a_restarted_pool_adopts_existing_runners(system: ClusterSystem) -> None:
    study = system.create(training={"epochs": 10})
    (trial,) = until(lambda: [t for t in system.trials(study.id) if t.state == "running"], 120, "a running trial")
    system.evaluated(trial.id)
    before = set(system.runners())
    system.kill(system.pool)
    system.pool.start()
    assert system.ended(study.id).state == "completed"
    assert [t.attempts for t in system.trials(study.id)] == [1]
    assert set(system.runners()) == before


def test_a_two_minute_server_outage_loses_no_training(system: ClusterSystem) -> None:
    study = system.create(training={"epochs": 30})
    (trial,) = until(lambda: [t for t in system.trials(study.id) if t.state == "running"], 120, "a running trial")
    system.evaluated(trial.id)
    system.kill(system.server.api)
    time.sleep(120)
    system.server.api.start()
    until(system.client.ready, 60, "the server to be back")
    assert system.ended(study.id).state == "completed"
    (trial,) = system.trials(study.id)
    assert (trial.state, trial.attempts) == ("completed", 1)
    steps = [m.step for m in system.client.metrics(trial.id) if m.name == "accuracy"]
    assert steps == [6 * k for k in range(1, 31)], "every evaluation made meanwhile has arrived"


def test_a_trial_that_hangs_is_stopped_and_its_process_replaced(system: ClusterSystem) -> None:
    study = system.create(
        task={"kind": "custom", "custom": {"name": "hanging", **JUDGED}},
        search={"retries": 0},
        limits={"stall_minutes": 0.2},
    )
    assert system.ended(study.id).state == "failed"
    (trial,) = system.trials(study.id)
    assert (trial.state, trial.failure.kind) == ("failed", "stalled")
    assert "no progress" in trial.failure.message
    assert "an answer that never comes" in system.client.log(trial.id).text
    # The hung process was replaced, so the next study runs.
    after = system.create()
    assert system.ended(after.id).state == "completed"


def test_a_trial_that_kills_its_runner_five_times_is_lost(system: ClusterSystem) -> None:
    study = system.create(task={"kind": "custom", "custom": {"name": "deadly", **JUDGED}}, training={"epochs": 1})
    assert system.ended(study.id, 400).state == "failed"
    (trial,) = system.trials(study.id)
    assert (trial.state, trial.failure.kind, trial.attempts) == ("failed", "lost", 5)
    assert "lost 5 times without a new checkpoint" in trial.failure.message
