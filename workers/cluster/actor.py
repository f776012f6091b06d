"""A runner as a detached Ray actor: Ray restarts it when its process dies; it exits when it is retired."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import datasets
import ray
import transformers

from service.client import Client
from service.schemas.specs import Shape
from service.settings import Settings

from ..runner.placement import InProcess
from ..runner.runner import Runner

if TYPE_CHECKING:
    from .processes import SeveralProcesses

_log = logging.getLogger(__name__)
NAMESPACE = "cdka"
NAME_PREFIX = "cdka-runner-"


class RunnerActor:
    """Starts its loop in a thread at construction, so that a process that Ray restarts continues by itself."""

    def __init__(self, settings: dict[str, Any], name: str, shape: Shape) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)
        # Progress bars are for terminals; these lines go to a file.
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        made = Settings(**settings)
        client = Client(made.server_url, made.read_token())
        # A restarted process gets a new name, because it does not own the former lease.
        self._processes: SeveralProcesses | None = None
        if shape.processes > 1:
            # Ray Train is imported where it is needed: that takes seconds.
            from .processes import SeveralProcesses

            self._processes = SeveralProcesses(made, shape, name, ray.get_runtime_context().namespace)
        self._runner = Runner(client, made, f"{name}:{os.getpid()}", shape, self._processes or InProcess())
        self._given: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._loop, name="runner", daemon=True)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._preempted)
        self._thread.start()

    def _loop(self) -> None:
        # The Trainer collects garbage twice a trial. Half a million objects of imported modules need no second look:
        # it took about 0.7 s each time.
        gc.collect()
        gc.freeze()
        try:
            self._runner.run()
        except BaseException:
            _log.exception("this runner is replaced")
            # Ray starts a fresh process in place of this one.
            os._exit(1)

    def _preempted(self, *_: object) -> None:
        """On preemption: write a checkpoint, return the trial, exit."""
        _log.warning("told to end (SIGTERM): the present trial is given back to the queue")
        self._runner.release()
        threading.Thread(target=self._leave, name="leaving").start()

    def _leave(self) -> None:
        self._thread.join()
        os._exit(0)

    def status(self) -> dict[str, Any]:
        """Whether it is busy, how long it has been idle, and its process id."""
        idle = 0.0 if self._runner.busy else time.monotonic() - self._runner.idle_since
        return {"busy": self._runner.busy, "idle_seconds": idle, "pid": os.getpid()}

    def joined(self, node: str) -> None:
        """Note that a process of the current trial runs on this node."""
        if self._processes is not None:
            self._processes.nodes.add(node)

    def give_back(self, node: str) -> None:
        """Return the current trial if one of its processes runs on a node that is leaving."""
        if self._processes is not None and node in self._processes.nodes:
            self._runner.give_back()

    def take(self, result: dict[str, Any]) -> None:
        """Receive the result of a trial from its first process."""
        self._given = result

    def taken(self) -> dict[str, Any]:
        """The last received result."""
        return self._given

    def is_released(self) -> bool:
        """Whether the current trial is to be returned to the queue."""
        return self._runner.released

    def release(self) -> None:
        """Return the current trial to the queue and exit."""
        self._runner.release()
        self._thread.join()

    def retire(self) -> None:
        """Lease no further trial; exit after the current one."""
        self._runner.retire()
        self._thread.join()
        ray.actor.exit_actor()
