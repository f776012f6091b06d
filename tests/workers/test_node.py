"""Cluster nodes: Ray's start arguments, and how runners end when the node shuts down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers import node


def test_a_head_node_runs_no_trials_and_no_dashboard() -> None:
    said = node.start_arguments("head", None, {})
    assert {"--head", "--num-cpus=0", "--num-gpus=0", "--include-dashboard=false", "--block"} <= set(said)


def test_a_node_offers_its_configured_resources() -> None:
    plain = node.start_arguments("join", "10.0.0.1:6379", {})
    assert "--address=10.0.0.1:6379" in plain
    assert not [a for a in plain if a.startswith(("--num", "--resources", "--node-ip"))]
    settings = {
        "CDKA_NODE_CPUS": "8",
        "CDKA_NODE_GPUS": "4",
        "CDKA_NODE_RESOURCES": '{"nvme": 1}',
        "CDKA_NODE_ADDRESS": "10.0.0.2",
    }
    told = node.start_arguments("join", "10.0.0.1:6379", settings)
    assert {"--num-cpus=8", "--num-gpus=4", '--resources={"nvme": 1}', "--node-ip-address=10.0.0.2"} <= set(told)


@pytest.mark.parametrize(
    ("name", "value"), [("CDKA_NODE_CPUS", "many"), ("CDKA_NODE_RESOURCES", "[1]"), ("CDKA_NODE_RESOURCES", "{")]
)
def test_invalid_node_settings_are_reported(name: str, value: str) -> None:
    with pytest.raises(SystemExit, match=name):
        node.start_arguments("join", "10.0.0.1:6379", {name: value})


RUNNER = """
import pathlib, signal, sys, time
# As Ray does: the process is called what it runs.
def leave(*_):
    time.sleep(1)
    pathlib.Path(sys.argv[1]).write_text("left")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(60)
"""


def test_runners_are_waited_for_before_ray_ends(tmp_path: Path) -> None:
    """``exec -a`` sets the runner's process title. A process that sleeps stands in for Ray."""
    script = tmp_path / "runner.py"
    script.write_text(RUNNER)
    left = tmp_path / "left"
    title = f"exec -a 'ray::RunnerActor-{os.getpid()}' {sys.executable} {script} {left}"
    runner = subprocess.Popen(["bash", "-c", title], stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    assert runner.stdout.readline() == "ready\n"
    code = f"""
import sys
from workers import node
node._drain = lambda grace: None
node._RUNNER = "ray::RunnerActor-{os.getpid()}"
sys.exit(node.run([sys.executable, "-c", "import time; time.sleep(60)"], 30))
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert left.read_text() == "left"
    assert runner.wait(5) == 0
    runner.stdout.close()


def test_a_node_exits_with_rays_exit_code() -> None:
    code = "import sys; from workers import node; sys.exit(node.run([sys.executable, '-c', 'raise SystemExit(7)'], 1))"
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 7
