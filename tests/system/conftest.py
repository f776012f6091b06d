"""A whole service in processes of its own: API, pool on a local Ray, runners that train the real MiniLM."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.cli.demo import MODEL_NAME, Sizes, demo_study, prepare_data
from service.cli.processes import Server, free_port
from service.client import Client
from service.settings import Settings

# A tiny slice of the demo: real model, real articles.
SLICE = Sizes(trials=3, seeds=1, train=48, validation=24, test=24, epochs=2, batch_size=8, max_length=32)
LEASE_SECONDS = 8.0


# Factor by which every wait is longer, for slow machines. The tests do not measure speed.
PATIENCE = 4.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set a timeout of one hour: on a slow machine the several waits of a test may take that long."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(3600))


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait until ``condition`` is true. Returns its value. If time runs out, the error names ``what``."""
    deadline = time.monotonic() + PATIENCE * seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE * seconds:.0f} s for {what}"
        time.sleep(0.2)
    return found


class System:
    """A running service and a client with an admin's token."""

    def __init__(self, home: Path) -> None:
        data = home / "data"
        prepare_data(data, SLICE)
        assert (data / MODEL_NAME / "model.safetensors").exists()
        port = free_port(18765)
        settings = Settings(
            home=home, database_url="", artifacts_url="", data_dirs=[data], port=port, lease_seconds=LEASE_SECONDS
        )
        self.server = Server(settings)
        self.server.start()
        token = (home / "admin-token").read_text().strip()
        self.client = Client(settings.server_url, token, attempts=8)

    def create(self, **sections: Any) -> Any:
        """The demo's study on the slice, with sections merged in; a search of its own has no recheck."""
        study = demo_study(SLICE)
        if "search" in sections:
            study["search"]["recheck"] = "none"
        for section, value in sections.items():
            study[section] = {**study[section], **value}
        return self.client.create_study(study)

    def ended(self, study_id: str, seconds: float = 240) -> Any:
        """Wait until the study has ended, and return it."""
        return until(
            lambda: s if (s := self.client.study(study_id)).state in ("completed", "failed", "cancelled") else None,
            seconds,
            "the study to end",
        )

    def running_trial(self, study_id: str) -> Any:
        """Wait until a trial is running, and return it."""
        return until(
            lambda: next((t for t in self.client.trials(study_id) if t.state == "running"), None),
            120,
            "a running trial",
        )

    def runner_pids(self) -> list[int]:
        """Processes of the runners on our own Ray."""
        assert self.server.pool is not None
        if self.server.pool.pid is None:
            return []
        children = psutil.Process(self.server.pool.pid).children(recursive=True)
        return [p.pid for p in children if _title(p).startswith("ray::RunnerActor")]

    def stop(self) -> None:
        """Stop everything. Fails if a process is left behind."""
        family = [c for p in self.server.processes if p.pid for c in psutil.Process(p.pid).children(recursive=True)]
        self.client.close()
        self.server.stop()
        _, alive = psutil.wait_procs(family, timeout=PATIENCE * 20)
        names = [_title(p) for p in alive]
        for process in alive:
            process.send_signal(signal.SIGKILL)
        assert not names, f"left behind: {names}"


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    os.environ["CDKA_RUNNER_IDLE_SECONDS"] = "600"
    made = System(tmp_path_factory.mktemp("system"))
    yield made
    made.stop()
