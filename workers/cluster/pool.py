"""Keep as many runners on the Ray cluster as the server needs."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Iterable
from typing import Any

import ray

from service.client import Client
from service.errors import ServiceError
from service.schemas.specs import GIB, Shape
from service.settings import Settings

from .actor import NAME_PREFIX, NAMESPACE, RunnerActor

_log = logging.getLogger("workers.pool")
TICK_SECONDS = 1.0
STATUS_TIMEOUT = 5.0
RELEASE_TIMEOUT = 15.0
# An idle runner leaves after this time if there is demand of another shape.
MAKE_ROOM_SECONDS = 5.0
# Settings that runners need. The token is passed as the name of a file, never as its value.
PASSED = (
    "home",
    "server_url",
    "token_file",
    "artifacts_url",
    "data_dirs",
    "runner_max_trials",
    "tasks",
    "cache_bytes",
    "activation_bytes",
    "checkpoint_seconds",
)


def prefix_of(shape: Shape) -> str:
    """The prefix of the names of this shape's runners, by which a restarted pool recognises them."""
    rest = json.dumps([shape.memory_gib, shape.accelerator_type, shape.custom, shape.processes])
    return f"{NAME_PREFIX}c{shape.cpus:g}-g{shape.gpus:g}-{hashlib.sha256(rest.encode()).hexdigest()[:8]}-"


def actor_resources(shape: Shape) -> dict[str, Any]:
    """The resources that Ray reserves for a runner.

    A runner whose trials run in several processes reserves nothing; those processes do.
    """
    if shape.processes > 1:
        return {"num_cpus": 0, "num_gpus": 0}
    options: dict[str, Any] = {"num_cpus": shape.cpus, "num_gpus": shape.gpus}
    if shape.memory_gib:
        options["memory"] = int(shape.memory_gib * GIB)
    if shape.accelerator_type:
        options["accelerator_type"] = shape.accelerator_type
    if shape.custom:
        options["resources"] = dict(shape.custom)
    return options


class Pool:
    """Adjusts the runners to the demand, once per tick. Keeps no state of its own: the actors' names carry it.

    Runners for which the cluster has no room stay pending, which is what Ray's autoscaler reacts to.
    """

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        # Any: Ray wraps the class at run time.
        self._actor: Any = ray.remote(RunnerActor)

    def tick(self) -> None:
        """Compare demand and runners: start missing ones, retire idle ones."""
        try:
            demand = {prefix_of(d.shape): (d.shape, d.slots) for d in self._client.demand().items}
        except ServiceError as error:
            # The server is away. Runners continue without it.
            _log.warning("demand is not known: %s", error.detail)
            return
        by_prefix: dict[str, list[str]] = {prefix: [] for prefix in demand}
        for name in sorted(self._names()):
            by_prefix.setdefault(name[: name.rindex("-") + 1], []).append(name)
        for prefix, mine in by_prefix.items():
            shape, wanted = demand.get(prefix, (None, 0))
            if shape is not None:
                for _ in range(wanted - len(mine)):
                    self._start(shape)
            if len(mine) > wanted:
                # A trial of another shape may wait for the resources of an idle runner.
                wanted_elsewhere = any(slots > 0 for other, (_, slots) in demand.items() if other != prefix)
                idle = MAKE_ROOM_SECONDS if wanted_elsewhere else self._settings.runner_idle_seconds
                self._retire_idle(mine, len(mine) - wanted, min(idle, self._settings.runner_idle_seconds))

    def _names(self) -> list[str]:
        return [name for name in ray.util.list_named_actors() if name.startswith(NAME_PREFIX)]

    def _start(self, shape: Shape) -> None:
        name = prefix_of(shape) + secrets.token_hex(4)
        passed = self._settings.model_dump(include=set(PASSED))
        actor = self._actor.options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=4,
            **actor_resources(shape),
        )
        actor.remote(passed, name, shape)
        _log.info("started %s for %s", name, shape)

    def _retire_idle(self, names: Iterable[str], surplus: int, idle_seconds: float) -> None:
        for name in names:
            if surplus == 0:
                return
            try:
                actor: Any = ray.get_actor(name, namespace=NAMESPACE)
                status: Any = ray.get(actor.status.remote(), timeout=STATUS_TIMEOUT)
            except (ValueError, ray.exceptions.RayError):
                continue  # gone, starting or restarting: seen again at the next tick
            if not status["busy"] and status["idle_seconds"] >= idle_seconds:
                actor.retire.remote()
                _log.info("retired %s", name)
                surplus -= 1

    def stop(self) -> None:
        """End every runner. Each returns its trial to the queue first, if there is time."""
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
