"""Run this machine as a node of a Ray cluster: ``python -m workers.node head | join ADDRESS | health | leave``.

On SIGTERM, a node takes no more work, its runners write checkpoints and return their trials, and then Ray stops. So
preemption and ``docker compose stop`` lose no finished step.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

_log = logging.getLogger("workers.node")
PORT = 6379
CLIENT_PORT = 10001
HEALTH_SECONDS = 10
# The part of the grace time that is reserved for Ray's own processes to end.
RESERVED_SECONDS = 10.0
# Must end before the supervisor kills this process.
MARGIN_SECONDS = 5.0
# Ray's name for the process of an actor.
_RUNNER = "ray::RunnerActor"
_TRAINING = "ray::RayTrainWorker"


def start_arguments(role: str, address: str | None, environment: dict[str, str]) -> list[str]:
    """The arguments of ``ray start``.

    ``CDKA_NODE_CPUS``, ``CDKA_NODE_GPUS`` and ``CDKA_NODE_RESOURCES`` (JSON) set what the node offers. By default Ray
    counts CPUs and GPUs. ``CDKA_NODE_ADDRESS`` is this machine's address on the cluster's network.

    Raises:
        SystemExit: a value is not a number, or not a JSON object.
    """
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
    ray += ["--disable-usage-stats", f"--object-store-memory={environment.get('CDKA_NODE_OBJECT_STORE', 100_000_000)}"]
    if own := environment.get("CDKA_NODE_ADDRESS"):
        ray.append(f"--node-ip-address={own}")
    if role == "head":
        # Losing the head restarts the whole cluster, so it runs no trials.
        ray += ["--head", f"--port={PORT}", f"--ray-client-server-port={CLIENT_PORT}", "--num-cpus=0", "--num-gpus=0"]
        return [*ray, "--include-dashboard=false"]
    ray.append(f"--address={address}")
    for option, name in (("--num-cpus", "CDKA_NODE_CPUS"), ("--num-gpus", "CDKA_NODE_GPUS")):
        if value := environment.get(name):
            if not value.isdigit():
                raise SystemExit(f"{name} is a whole number of what this node offers; got {value!r}")
            ray.append(f"{option}={value}")
    if resources := environment.get("CDKA_NODE_RESOURCES"):
        try:
            if not isinstance(json.loads(resources), dict):
                raise ValueError
        except ValueError:
            said = f"got {resources!r}"
            raise SystemExit(f'CDKA_NODE_RESOURCES is a JSON object such as {{"nvme": 1}}; {said}') from None
        ray.append(f"--resources={resources}")
    return ray


def run(arguments: Sequence[str], grace: float) -> int:
    """Run ``ray start`` until it ends or this process gets SIGTERM. Reaps orphaned processes."""
    child = subprocess.Popen(arguments)
    told: list[float] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.append(time.monotonic()))
    while True:
        if told:
            leave(grace - RESERVED_SECONDS)
            child.terminate()
            try:
                child.wait(RESERVED_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
            return 0
        try:
            # Reap orphaned processes, as the first process of a container must.
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 1
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status)
        if pid == 0:
            time.sleep(0.2)


def leave(grace: float) -> None:
    """Take no more work, end this machine's runners in order, and wait up to ``grace`` seconds for them."""
    deadline = time.monotonic() + grace
    if not _processes():
        return
    _drain(grace)
    for pid in _processes(_RUNNER):
        _log.info("runner %d: give your trial back and leave", pid)
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
    leaving = set(_processes())
    while leaving & set(_processes()) and time.monotonic() < deadline:
        time.sleep(0.2)


def _drain(grace: float) -> None:
    """Drain the node in Ray, unless the head does not answer."""
    # Trials that have a process here but their runner elsewhere are returned, too.
    code = (
        "import ray;"
        "ray.init(address='auto', namespace='cdka', logging_level='ERROR', log_to_driver=False);"
        "context = ray.get_runtime_context(); node = context.get_node_id();"
        "names = [n for n in ray.util.list_named_actors() if n.startswith('cdka-runner-')];"
        "told = [ray.get_actor(n).give_back.remote(node) for n in names];"
        "told and ray.wait(told, num_returns=len(told), timeout=5);"
        "print(node, context.gcs_address)"
    )
    try:
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=grace / 3)
        node, address = found.stdout.split()[-2:]
        drain = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "drain-node"]
        drain += [f"--address={address}", f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
        drain += ["--reason-message=told to end", f"--deadline-remaining-seconds={max(1, int(grace))}"]
        subprocess.run(drain, capture_output=True, timeout=grace / 3, check=True)
    except (subprocess.SubprocessError, ValueError) as error:
        _log.warning("the cluster could not be told that this node leaves: %s", error)


def _processes(*names: str) -> list[int]:
    """The processes of runners and of their trials on this machine or in this container."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as stream:
                    title = stream.read().decode(errors="replace")
            except OSError:
                continue
            if title.startswith(names or (_RUNNER, _TRAINING)):
                found.append(int(entry))
    return found


program = typer.Typer(
    help="A node of a Ray cluster.", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False
)


@program.callback()
def _set_up() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


@program.command()
def head() -> None:
    """Run the head of a cluster. It runs no trials."""
    raise SystemExit(_run_node("head", None))


@program.command()
def join(address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The head's address.")]) -> None:
    """Offer this machine to a cluster."""
    raise SystemExit(_run_node("join", address))


@program.command()
def health() -> None:
    """Exit 0 if this node's Ray answers."""
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "health-check"]
    if address := os.environ.get("CDKA_HEALTH_ADDRESS"):
        command.append(f"--address={address}")
    try:
        raise SystemExit(subprocess.run(command, capture_output=True, timeout=HEALTH_SECONDS).returncode)
    except subprocess.TimeoutExpired:
        raise SystemExit(1) from None


@program.command("leave")
def leave_command() -> None:
    """End this machine's runners in order. For a pod's preStop hook, where others started Ray."""
    leave(_grace())


def _grace() -> float:
    """Seconds until this process must have ended."""
    return float(os.environ.get("CDKA_GRACE_SECONDS", "90")) - MARGIN_SECONDS


def _run_node(role: str, address: str | None) -> int:
    if (devices := os.environ.get("CDKA_NODE_DEVICES", "all")) != "all":
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    return run(start_arguments(role, address, dict(os.environ)), _grace())


if __name__ == "__main__":
    program(prog_name="python -m workers.node")
