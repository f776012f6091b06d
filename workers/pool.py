"""Keeps as many runners on the Ray cluster as the server has work for."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray

from service.client import Client
from service.errors import ServiceError
from service.settings import Settings

from .actor import NAME_PREFIX, NAMESPACE, RunnerActor

_log = logging.getLogger("workers.pool")
TICK_SECONDS = 1.0
STATUS_TIMEOUT = 5.0
RELEASE_TIMEOUT = 15.0
# What runners need of the settings; the token travels as the name of a file, never as itself.
PASSED = (
    "home",
    "server_url",
    "token_file",
    "artifacts_url",
    "data_dirs",
    "runner_max_trials",
    "tasks",
    "cache_bytes",
    "checkpoint_seconds",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Resources of one runner."""

    cpus: float
    gpus: float

    @property
    def prefix(self) -> str:
        """Names of runners of this shape begin with it, so that a pool that starts anew knows them."""
        return f"{NAME_PREFIX}c{self.cpus:g}-g{self.gpus:g}-"


class Pool:
    """Adjusts the runners to the demand, once a tick. Holds no state that the cluster does not: names say it all."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        # Any: Ray wraps the class at run time.
        self._actor: Any = ray.remote(RunnerActor)

    def tick(self) -> None:
        """Look at demand and runners; start what is missing, retire what has been idle for long."""
        try:
            demand = {Shape(d.cpus, d.gpus): d.slots for d in self._client.demand().items}
        except ServiceError as error:
            # Runners go on without us and without the server; nothing is taken from them.
            _log.warning("demand is not known: %s", error.detail)
            return
        names = self._names()
        shapes = set(demand) | {shape for name in names if (shape := parse_shape(name)) is not None}
        for shape in shapes:
            mine = sorted(name for name in names if name.startswith(shape.prefix))
            wanted = demand.get(shape, 0)
            for _ in range(wanted - len(mine)):
                self._start(shape)
            if len(mine) > wanted:
                self._retire_idle(mine, len(mine) - wanted)

    def _names(self) -> list[str]:
        return [name for name in ray.util.list_named_actors() if name.startswith(NAME_PREFIX)]

    def _start(self, shape: Shape) -> None:
        name = shape.prefix + secrets.token_hex(4)
        passed = self._settings.model_dump(include=set(PASSED))
        actor = self._actor.options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=shape.cpus,
            num_gpus=shape.gpus,
            max_restarts=-1,
            max_concurrency=4,
        )
        actor.remote(passed, name, shape.cpus, shape.gpus)
        _log.info("started %s", name)

    def _retire_idle(self, names: Iterable[str], surplus: int) -> None:
        for name in names:
            if surplus == 0:
                return
            try:
                actor: Any = ray.get_actor(name, namespace=NAMESPACE)
                status: Any = ray.get(actor.status.remote(), timeout=STATUS_TIMEOUT)
            except (ValueError, ray.exceptions.RayError):
                continue  # gone, starting or restarting: seen again at the next tick
            if not status["busy"] and status["idle_seconds"] >= self._settings.runner_idle_seconds:
                actor.retire.remote()
                _log.info("retired %s", name)
                surplus -= 1

    def stop(self) -> None:
        """End every runner: each gives its trial back to the queue first, if it can in time."""
        actors: list[Any] = []
        for name in self._names():
            try:
                actors.append(ray.get_actor(name, namespace=NAMESPACE))
            except ValueError:
                continue
        if actors:
            ray.wait([a.release.remote() for a in actors], num_returns=len(actors), timeout=RELEASE_TIMEOUT)
        for actor in actors:
            ray.kill(actor, no_restart=True)


def parse_shape(name: str) -> Shape | None:
    """The shape that a runner's name tells."""
    try:
        cpus, gpus, _ = name.removeprefix(NAME_PREFIX).split("-")
        return Shape(float(cpus.removeprefix("c")), float(gpus.removeprefix("g")))
    except ValueError:
        return None
