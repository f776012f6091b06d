"""One trial in several processes that share its batches: Ray Train's TorchTrainer, with DistributedDataParallel."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from service.client import Client
from service.schemas.leases import LeaseOut, ResultIn
from service.schemas.specs import GIB, FailureKind, Shape, StopReason
from service.settings import Settings

from ..failures import Rejected, classify, failed
from ..runner.checkpoints import StoredCheckpoints
from ..runner.output import CapturedOutput
from ..runner.reporter import Reporter
from ..runner.runner import Runner

_log = logging.getLogger(__name__)
ASK_SECONDS = 1.0
ROOM_SECONDS = 0.5
# Reasons to stop: the first process broadcasts their places in this list.
_REASONS = tuple(StopReason)


def share_of(shape: Shape) -> dict[str, float]:
    """The resources of each process of a trial: an even share of the trial's."""
    share: dict[str, float] = {"CPU": shape.cpus / shape.processes}
    if shape.gpus:
        share["GPU"] = shape.gpus / shape.processes
    if shape.memory_gib:
        share["memory"] = shape.memory_gib * GIB / shape.processes
    return share | {name: amount / shape.processes for name, amount in shape.custom}


def scaling(shape: Shape) -> ScalingConfig:
    """Ray Train's scaling configuration for a trial."""
    return ScalingConfig(
        num_workers=shape.processes,
        use_gpu=shape.gpus > 0,
        resources_per_worker=share_of(shape),
        accelerator_type=shape.accelerator_type or None,
    )


class Room:
    """Reserves resources for the processes of one trial before a trial is leased.

    The placement group is pending until the resources are free, which is what Ray's autoscaler reacts to.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._group: Any = None
        self._ready: Any = None

    def is_there(self) -> bool:
        """Whether the resources are reserved now."""
        if self._group is None:
            bundle = share_of(self._shape)
            if self._shape.accelerator_type:
                # A tiny amount of the resource by which Ray marks nodes with this accelerator.
                bundle[f"accelerator_type:{self._shape.accelerator_type}"] = 0.001
            self._group = ray.util.placement_group([bundle] * self._shape.processes, strategy="PACK")
            self._ready = self._group.ready()
        done, _ = ray.wait([self._ready], timeout=ROOM_SECONDS)
        return bool(done)

    def leave(self) -> None:
        """Free the reservation for the trial's processes, which Ray Train places."""
        if self._group is not None:
            ray.util.remove_placement_group(self._group)
            self._group = self._ready = None


def _never_again() -> Any:
    # Ray's annotations are those of its former FailureConfig.
    config: Any = FailureConfig
    return config(max_failures=0, max_preemption_failures=0)


class _Launcher:
    """Owns Ray Train's run of one trial. Killing it ends everything that it started."""

    def run(self, config: dict[str, Any], folder: str) -> None:
        """Run the trial's processes until they end."""
        shape, lease = Shape.of(config["shape"]), config["lease"]
        TorchTrainer(
            train_process,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if shape.gpus else "gloo"),
            scaling_config=scaling(shape),
            run_config=RunConfig(
                name=f"{lease['trial']['id']}-{lease['trial']['attempt']}",
                storage_path=folder,
                # A lost trial continues under a new lease from the last checkpoint, so Ray Train must not retry.
                failure_config=_never_again(),
            ),
        ).fit()


class SeveralProcesses:
    """Runs each trial in ``shape.processes`` processes, which Ray Train starts for the runner ``name``.

    The first process reports and stores; the others only train. If one dies, all end, and the trial is queued again
    with its last checkpoint.
    """

    def __init__(self, settings: Settings, shape: Shape, name: str, namespace: str) -> None:
        self._settings = settings
        self._shape = shape
        self._name = name
        self._namespace = namespace
        self._room = Room(shape)
        # Nodes with processes of the current trial.
        self.nodes: set[str] = set()

    def may_lease(self) -> bool:
        """Whether the resources of a trial are reserved."""
        return self._room.is_there()

    def run(self, lease: LeaseOut, here: Callable[[], ResultIn], is_wanted: Callable[[], bool]) -> ResultIn:
        """Run a leased trial and return its first process's result.

        A trial that is revoked before its processes run is returned to the queue from here; afterwards its first
        process stops it.
        """
        self.nodes.clear()
        self._room.leave()
        config = {
            "lease": lease.model_dump(mode="json"),
            "settings": self._settings.model_dump(mode="json", exclude={"token"}),
            "shape": self._shape.as_dict(),
            "coordinator": self._name,
            "namespace": self._namespace,
        }
        # Ray Train needs a folder for its own few bytes; artifacts are stored by us.
        folder = self._settings.home / "train"
        folder.mkdir(parents=True, exist_ok=True)
        # Any: Ray wraps the class at run time.
        wrapped: Any = ray.remote(num_cpus=0, max_restarts=0)(_Launcher)
        launcher: Any = wrapped.remote()
        run = launcher.run.remote(config, str(folder))
        try:
            while not ray.wait([run], timeout=ASK_SECONDS)[0]:
                if not self.nodes and not is_wanted():
                    return ResultIn(state="released")
            ray.get(run)
        except Exception as error:  # every failure of a process becomes the trial's result
            return _failed(error)
        finally:
            ray.kill(launcher)
        runner: Any = ray.get_actor(self._name, namespace=self._namespace)
        return ResultIn.model_validate(ray.get(runner.taken.remote()))


def _failed(error: Exception) -> ResultIn:
    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    causes = getattr(error, "worker_failures", None) or {0: error}
    cause = _root(causes[min(causes)])
    if isinstance(cause, ray.exceptions.RayActorError | ray.exceptions.NodeDiedError):
        message = f"one of the trial's processes was lost: {str(cause).splitlines()[0]}"
        return failed(FailureKind.PREEMPTED, message)
    return failed(*classify(cause))


def _root(error: BaseException) -> BaseException:
    while (inner := getattr(error, "_base_exc", None) or getattr(error, "cause", None)) is not None and isinstance(
        inner, BaseException
    ):
        error = inner
    return error


def train_process(config: dict[str, Any]) -> None:
    """The body of each process of a trial. The first one sends the result to the runner that launched them."""
    lease = LeaseOut.model_validate(config["lease"])
    settings = Settings(**config["settings"])
    shape = Shape.of(config["shape"])
    torch.set_num_threads(max(1, int(shape.cpus / shape.processes)))
    coordinator: Any = ray.get_actor(config["coordinator"], namespace=config["namespace"])
    ray.get(coordinator.joined.remote(ray.get_runtime_context().get_node_id()))
    client = Client(settings.server_url, settings.read_token())
    group = DistributedGroup()
    runner = Runner(client, settings, config["coordinator"], shape, group=group)
    if not group.leads:
        quiet = Reporter(runner.client, lease.id, lease.heartbeat_seconds)
        # Never started: the other processes' reports are not sent.
        runner.train(lease, quiet, StoredCheckpoints(lease.trial, settings.artifacts_url, None))
        return
    with CapturedOutput() as output:
        reporter = Reporter(runner.client, lease.id, lease.heartbeat_seconds, output)
        stored = StoredCheckpoints(lease.trial, settings.artifacts_url, reporter)
        reporter.start()
        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=(coordinator, runner, over), name="watcher", daemon=True)
        watcher.start()
        try:
            result = runner.train(lease, reporter, stored)
        finally:
            over.set()
            output.stop()
            undelivered = reporter.close()
    if reporter.refusal is not None:
        raise Rejected(reporter.refusal)
    stored.drop_old()
    result.resources = {"processes": shape.processes, **result.resources}
    for step, metrics in undelivered:
        _log.warning("the server has not taken the report of step %d: %s", step, metrics)
    ray.get(coordinator.take.remote(result.model_dump(mode="json")))


def _watch(coordinator: Any, runner: Runner, over: threading.Event) -> None:
    """Forward the runner's order to return its trial."""
    while not over.wait(ASK_SECONDS):
        try:
            if ray.get(coordinator.is_released.remote(), timeout=10 * ASK_SECONDS):
                runner.release()
                return
        except ray.exceptions.RayError:
            _log.debug("the runner does not answer")


class DistributedGroup:
    """The processes of one trial, which share its batches: a :class:`~workers.runner.placement.Group`."""

    def __init__(self) -> None:
        # A second group besides the one for gradients: the agreed number lies in host memory.
        self._group = dist.new_group(backend="gloo")
        self.leads = dist.get_rank() == 0

    def agree(self, reason: StopReason | None) -> StopReason | None:
        """The first process's reason. Every process calls this at the same points."""
        place = -1 if reason is None else _REASONS.index(reason)
        said = torch.tensor([place], dtype=torch.int64)
        dist.broadcast(said, 0, group=self._group)
        return None if int(said) < 0 else _REASONS[int(said)]
