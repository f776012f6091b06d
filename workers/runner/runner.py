"""The runner's loop: lease, train, report, repeat. Knows nothing of Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import ValidationError

import cdka
from service.client import Client
from service.errors import ServiceError
from service.paths import is_inside
from service.schemas.leases import LeasedTrial, LeaseOut, ResultIn
from service.schemas.specs import FailureKind, Shape, StopReason, TaskKind, TrialPhase
from service.settings import Settings

from ..failures import before_first_step, classify, failed, poisons_process
from ..inputs.base_models import BaseWeightsChanged
from ..tasks import find_task
from ..training.adapters import adapter_config, freeze_biases, require_layers, require_planned
from ..training.follow import Checkpoints
from ..training.measurement import measure
from ..training.start_from import load_weights
from ..training.trial import Outcome, train_trial
from .artifacts import fetch, size_of, store_adapter
from .checkpoints import StoredCheckpoints
from .output import CapturedOutput
from .placement import Alone, Group, InProcess, Placement
from .reporter import Reporter
from .results import deliver, result_of
from .warm import Warm

_log = logging.getLogger(__name__)
POLL_SECONDS = 1.0
# After an answer that cannot be read: each further one would cost a trial a loss.
UNREADABLE_SECONDS = 300.0
# How long a trial may run after its lease was lost.
HUNG_SECONDS = float(os.environ.get("CDKA_HUNG_SECONDS", "60"))


class Poisoned(Exception):
    """This process must not run another trial."""


@dataclass
class Runner:
    """Runs trials one after the other until it is retired or poisoned.

    Args:
        client: the SDK, with a worker's token.
        settings: data folders and the artifact store.
        name: the runner's name at the server.
        shape: the resources of its trials; torch uses as many threads as CPUs.
        placement: where trials run: in this process, or in several others.
        group: the processes that train a trial with this one.
        train_trial: trains a trial on a lent model; see :func:`~workers.training.trial.train_trial`.
        end_process: ends this process if its trial hangs.
    """

    client: Client
    settings: Settings
    name: str
    shape: Shape = field(default_factory=Shape)
    placement: Placement = field(default_factory=InProcess)
    group: Group = field(default_factory=Alone)
    train_trial: Callable[..., Outcome] = field(default_factory=lambda: train_trial)
    end_process: Callable[[], None] = field(default_factory=lambda: _end_process)
    trials_done: int = field(default=0, init=False)
    busy: bool = field(default=False, init=False)
    idle_since: float = field(default_factory=time.monotonic, init=False)
    # Seconds until the next lease request.
    _pause: float = field(default=POLL_SECONDS, init=False)
    _warm: Warm = field(default_factory=Warm, init=False)
    _retired: threading.Event = field(default_factory=threading.Event, init=False)
    _released: threading.Event = field(default_factory=threading.Event, init=False)
    _given_back: threading.Event = field(default_factory=threading.Event, init=False)

    @property
    def released(self) -> bool:
        """Whether it was told to return its trial."""
        return self._released.is_set() or self._given_back.is_set()

    def give_back(self) -> None:
        """Return the current trial to the queue and lease another."""
        self._given_back.set()

    def retire(self) -> None:
        """Lease no further trial."""
        self._retired.set()

    def release(self) -> None:
        """Lease no further trial, and return the current one to the queue within one step."""
        self._released.set()
        self._retired.set()

    def run(self) -> None:
        """Lease and train until retired.

        Raises:
            Poisoned: this process must be replaced.
        """
        torch.set_num_threads(max(1, int(self.shape.cpus)))
        if 0 < self.shape.gpus < 1 and torch.cuda.is_available():
            # Limit this process' share of the device for its neighbours.
            torch.cuda.set_per_process_memory_fraction(self.shape.gpus)
        while not self._retired.is_set():
            lease = self._next_lease() if self.placement.may_lease() else None
            if lease is None:
                # Jitter spreads runners that were turned away together.
                self._retired.wait(self._pause * random.uniform(0.75, 1.25))
                continue
            self.busy = True
            self._given_back.clear()
            try:
                self.run_lease(lease)
            finally:
                self.busy, self.idle_since = False, time.monotonic()
            if self.trials_done >= self.settings.runner_max_trials:
                raise Poisoned(f"{self.trials_done} trials done; a fresh process takes over")

    def _next_lease(self) -> LeaseOut | None:
        warm = [self._warm.model_key] if self._warm.model_key else []
        self._pause = POLL_SECONDS
        try:
            answer = self.client.lease(self.name, self.shape, warm, host=socket.gethostname())
        except ServiceError as error:
            _log.warning("no lease: %s", error.detail)
            return None
        except ValidationError as error:
            # Of a server of another release. The lease expires; other runners may understand it.
            words = error.errors(include_url=False, include_input=False)[0]["msg"]
            _log.error("no lease: the server's answer cannot be read; are both of one release? %s", words)
            self._pause = UNREADABLE_SECONDS
            return None
        self._pause = answer.retry_after_seconds or POLL_SECONDS
        return answer.leases[0] if answer.leases else None

    def run_lease(self, lease: LeaseOut) -> None:
        """Run one leased trial and send its result.

        Raises:
            Poisoned: this process must be replaced.
        """
        with CapturedOutput() as output:
            reporter = Reporter(self.client, lease.id, lease.heartbeat_seconds, output)
            stored = StoredCheckpoints(lease.trial, self.settings.artifacts_url, reporter)
            reporter.start()
            started = time.perf_counter()
            poison: BaseException | None = None
            over = threading.Event()
            threading.Thread(target=self._watch, args=(reporter, over), name="watch", daemon=True).start()
            try:
                result = self.placement.run(
                    lease, lambda: self.train(lease, reporter, stored), lambda: self._stop_reason(reporter) is None
                )
            except Exception as error:  # every failure becomes the trial's result
                _log.exception("trial %d failed", lease.trial.number)
                result = failed(*classify(error))
                poison = error if poisons_process(error) else None
            over.set()
            output.stop()
            undelivered = reporter.close()
            if reporter.refusal is not None:
                result = failed(FailureKind.REJECTED, reporter.refusal)
            result.resources = {**self._resources(started), **result.resources}
        checkpoint = reporter.unsent_checkpoint
        stored.drop_old()
        self.trials_done += 1
        if reporter.stop_reason is not StopReason.LOST:
            deliver(self.client, lease, reporter.unsent_inputs, undelivered, checkpoint, result)
        if poison is not None:
            raise Poisoned(str(poison)) from poison

    def _watch(self, reporter: Reporter, over: threading.Event) -> None:
        """End the process if its trial was taken away and does not stop."""
        while not over.wait(1.0):
            if reporter.stop_reason is StopReason.LOST and over.wait(HUNG_SECONDS) is False:
                _log.error("the trial was taken away %.0f s ago and does not end; this process does", HUNG_SECONDS)
                self.end_process()
                return

    def _resources(self, started: float) -> dict[str, Any]:
        seconds = time.perf_counter() - started
        return {
            "seconds": round(seconds, 3),
            "gpu_seconds": round(seconds * self.shape.gpus, 3),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() and self.shape.gpus else "cpu",
            "threads": torch.get_num_threads(),
            "runner": self.name,
            "versions": {name: version(name) for name in _PACKAGES} | self._commit(),
        }

    def _commit(self) -> dict[str, str]:
        commit = self.settings.source_commit
        return {} if commit is None else {"commit": commit}

    def train(self, lease: LeaseOut, reporter: Reporter, stored: StoredCheckpoints) -> ResultIn:
        """Run one leased trial here and return its result.

        Raises:
            Rejected: data or model cannot be used, or something failed before any trial of the study made a step.
        """
        try:
            return self._train(lease, reporter, stored)
        except Exception as error:
            trial = lease.trial
            begun = trial.inputs is not None or trial.checkpoint is not None or reporter.has_stepped
            if begun or trial.phase is TrialPhase.MEASUREMENT:
                raise
            cause = before_first_step(error)
            if cause is error:
                raise
            raise cause from error

    def _train(self, lease: LeaseOut, reporter: Reporter, stored: StoredCheckpoints) -> ResultIn:
        trial = lease.trial
        _log.info("trial %d, attempt %d: %s %s", trial.number, trial.attempt, trial.method, trial.params)
        task = find_task(trial.study.task, self.settings.tasks)
        prepare_started = time.perf_counter()
        warm, prepared = self._warm.prepare(trial, task, self.settings)
        heads = {*task.heads, *warm.heads, *warm.new_modules}
        require_layers(warm.model, trial.layers, heads)
        if trial.phase is TrialPhase.MEASUREMENT:
            return ResultIn(state="completed", predictions=measure(trial, warm, prepared))
        config = adapter_config(trial.method, trial.params, trial.layers, trial.study.adapter, task.task_type, heads)
        activations = self._warm.activations_of(trial, self.settings, lambda: self._stop_reason(reporter) is None)
        model = warm.lend(config, trial.seed)
        if trial.method == "full":
            freeze_biases(model, trial.layers)
        require_planned(model, trial.method, trial.params, trial.layers)
        if trial.start_from is not None and trial.checkpoint is None:
            self._start_from(model, trial)
        if trial.inputs is None and self._warm.inputs is not None:
            reporter.expect_inputs(self._warm.inputs)
        swap_seconds = time.perf_counter() - prepare_started
        artifact = None
        try:
            known = contextlib.nullcontext() if activations is None else activations.in_place(model.get_base_model())
            with tempfile.TemporaryDirectory(prefix="cdka-resume-") as scratch, known:
                checkpoints = Checkpoints(stored.bring(scratch), stored.keep, self.settings.checkpoint_seconds)
                outcome = self.train_trial(
                    trial,
                    task,
                    model,
                    prepared,
                    reporter,
                    lambda: self.group.agree(self._stop_reason(reporter)),
                    checkpoints,
                )
            if outcome.stop_reason is None and self.group.leads:
                artifact = store_adapter(
                    model,
                    self.settings.artifacts_url,
                    trial.study_id,
                    trial.number,
                    trial.attempt,
                    self._task_file(trial),
                    prepared.processing,
                )
        except BaseException:
            # Do not lend a model again after a failed training.
            self._warm.forget()
            raise
        try:
            warm.take_back(model)
        except BaseWeightsChanged:
            self._warm.forget()
            raise
        resources: dict[str, Any] = {"swap_seconds": round(swap_seconds, 3), "data": prepared.origins}
        resources |= {"train_seconds": round(outcome.train_seconds, 3), **outcome.use}
        if activations is not None:
            resources["frozen_layers"] = activations.layers.depth
        if checkpoints.resume_from is not None:
            resources["resumed_from"] = trial.checkpoint
        if artifact is not None:
            resources["artifact_bytes"] = size_of(artifact)
        return result_of(outcome, artifact, resources)

    def _start_from(self, model: PeftModel, trial: LeasedTrial) -> None:
        """Give the model the weights of the adapter that the training begins with."""
        assert trial.start_from is not None
        # An artifact's URL must not read anything outside of the study's folder.
        home = f"{self.settings.artifacts_url.rstrip('/')}/studies/{trial.study_id}"
        if not is_inside(trial.start_from, home):
            raise ValueError(f"the adapter to start from lies outside of this study's artifacts: {trial.start_from}")
        with tempfile.TemporaryDirectory(prefix="cdka-start-") as scratch:
            try:
                fetch(trial.start_from, scratch)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"the adapter to start from is gone: {trial.start_from}") from error
            load_weights(model, Path(scratch))

    def _task_file(self, trial: LeasedTrial) -> cdka.TaskFile:
        """What the trial's adapter is for."""
        study, inputs = trial.study, self._warm.inputs
        classes = None if inputs is None or inputs.classes is None else list(inputs.classes)
        return cdka.TaskFile(
            kind=study.task.kind if study.task.kind is not TaskKind.CUSTOM else study.task.architecture,
            base_model=study.model.path,
            base_revision=study.model.revision,
            base_sha256=None if inputs is None else inputs.model_sha256,
            classes=classes,
            columns=dict(study.task.roles),
            template=study.task.template,
            max_length=study.training.max_length,
            origin={
                "study": trial.study_id,
                "name": study.name,
                "trial": trial.number,
                "method": trial.method,
                "params": trial.params,
                "seed": trial.seed,
            },
        )

    def _stop_reason(self, reporter: Reporter) -> StopReason | None:
        return reporter.stop_reason or (StopReason.RELEASED if self.released else None)


# Packages whose version may change a result.
_PACKAGES = ("cdka", "torch", "transformers", "peft", "datasets")


def _end_process() -> None:
    os._exit(70)
