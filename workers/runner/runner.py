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
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

import cdka
from service.client import Client
from service.errors import InputsChanged, LeaseLost, NotFound, ServiceError
from service.paths import link_outside, locate
from service.schemas.leases import LeasedTrial, LeaseOut, ResultIn
from service.schemas.specs import FailureKind, Inputs, Shape, StopReason, StudySpec, TaskKind, TrialPhase, changes_told
from service.settings import Settings

from ..failures import Rejected, before_first_step, classify, failed, poisons_process
from ..inputs.base_models import BaseWeightsChanged, WarmModel
from ..inputs.identity import Stamp, digest_of, inputs_of, model_folder, require_ids, stamp
from ..inputs.splits import SPLITS, Splits, load_splits
from ..inputs.token_cache import TokenisedCache
from ..tasks import Task, find_task
from ..tasks.task import Prepared
from ..training.activation_cache import ActivationCache, Storage, compute_activations, find_frozen_layers
from ..training.adapters import adapter_config, require_layers, require_planned
from ..training.follow import Checkpoints
from ..training.measurement import measure
from ..training.trial import Outcome, train_trial
from .artifacts import size_of, store_adapter
from .checkpoints import StoredCheckpoints
from .output import CapturedOutput
from .placement import Alone, Group, InProcess, Placement
from .reporter import Reporter

_log = logging.getLogger(__name__)
POLL_SECONDS = 1.0
# How long a finished trial waits for the server during an outage.
RESULT_PATIENCE_SECONDS = 3600.0
RETRY_SECONDS = 2.0
# How long a trial may run after its lease was lost.
HUNG_SECONDS = float(os.environ.get("CDKA_HUNG_SECONDS", "60"))


class Poisoned(Exception):
    """This process must not run another trial."""


@dataclass(slots=True)
class _Warm:
    """Kept between trials: one base model and its data, and the marks of the files that they were read from."""

    model_key: str = ""
    data_key: str = ""
    model: WarmModel | None = None
    prepared: Prepared | None = None
    splits: Splits | None = None
    inputs: Inputs | None = None
    paths: tuple[Path, ...] = ()
    stamp: Stamp = ()
    activations_key: str = ""
    activations: ActivationCache | None = None


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
    _warm: _Warm = field(default_factory=_Warm, init=False)
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
            self._deliver(lease, reporter.unsent_inputs, undelivered, checkpoint, result)
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
        }

    def _deliver(
        self,
        lease: LeaseOut,
        inputs: Inputs | None,
        undelivered: list[tuple[int, dict[str, float]]],
        checkpoint: str | None,
        result: ResultIn,
    ) -> None:
        """Send what the server has not taken, and the result, until it accepts them: an outage loses no trial."""
        deadline = time.monotonic() + RESULT_PATIENCE_SECONDS
        while True:
            try:
                if inputs is not None:
                    self.client.record_inputs(lease.id, inputs)
                    inputs = None
                if undelivered or checkpoint:
                    self.client.report(lease.id, undelivered, checkpoint)
                    undelivered, checkpoint = [], None
                self.client.finish(lease.id, result)
                return
            except InputsChanged as error:
                inputs, resources = None, result.resources
                result = failed(FailureKind.REJECTED, error.detail)
                result.resources = resources
            except (LeaseLost, NotFound) as error:
                _log.warning("trial %d is another's now: %s", lease.trial.number, error.detail)
                return
            except ServiceError as error:
                if error.status == 422 and result.state != "failed":
                    # Send a failure with the reason instead of a result that the server rejects.
                    result = _refused(error.detail, result.resources)
                    continue
                if error.status < 500 or time.monotonic() > deadline:
                    _log.error("the result of trial %d was not taken: %s", lease.trial.number, error.detail)
                    return
                time.sleep(RETRY_SECONDS)

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
        warm, prepared = self._prepare(lease, task)
        heads = {*task.heads, *warm.heads, *warm.new_modules}
        require_layers(warm.model, trial.layers, heads)
        if trial.phase is TrialPhase.MEASUREMENT:
            return ResultIn(state="completed", predictions=measure(trial, warm, prepared))
        config = adapter_config(
            trial.method, trial.params, trial.layers, trial.study.adapter.dropout, task.task_type, heads
        )
        activations = self._activations(lease, warm, prepared, reporter)
        model = warm.lend(config, trial.seed)
        require_planned(model, trial.method, trial.params, trial.layers)
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
            self._warm = _Warm()
            raise
        try:
            warm.take_back(model)
        except BaseWeightsChanged:
            self._warm = _Warm()
            raise
        resources: dict[str, Any] = {"swap_seconds": round(swap_seconds, 3), "data": prepared.origins}
        resources |= {"train_seconds": round(outcome.train_seconds, 3), **outcome.use}
        if activations is not None:
            resources["frozen_layers"] = activations.layers.depth
        if checkpoints.resume_from is not None:
            resources["resumed_from"] = trial.checkpoint
        if artifact is not None:
            resources["artifact_bytes"] = size_of(artifact)
        return _result(outcome, artifact, resources)

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

    def _activations(
        self, lease: LeaseOut, warm: WarmModel, prepared: Prepared, reporter: Reporter
    ) -> ActivationCache | None:
        """The activations of the layers below the first adapted one, computed with the first trial."""
        study = lease.trial.study
        key = f"{self._warm.data_key}\n{study.model_key}\n{study.adapter.target_modules}"
        if self._warm.activations_key == key:
            return self._warm.activations
        self._warm.activations_key, self._warm.activations = key, None
        if study.training.gradient_checkpointing:
            return None
        layers = find_frozen_layers(warm.model, [layer.name for layer in lease.trial.layers])
        if layers is None:
            return None
        storage = Storage(self.settings.home / "cache", self.settings.activation_bytes)

        def is_wanted() -> bool:
            return self._stop_reason(reporter) is None

        found = compute_activations(warm.model, layers, prepared, study.training.precision, storage, is_wanted)
        self._warm.activations = found
        if not is_wanted():
            # They may be incomplete, so the next trial computes them.
            self._warm.activations_key = ""
        return found

    def _stop_reason(self, reporter: Reporter) -> StopReason | None:
        return reporter.stop_reason or (StopReason.RELEASED if self.released else None)

    def _prepare(self, lease: LeaseOut, task: Task) -> tuple[WarmModel, Prepared]:
        """The base model and the tokenised data, kept if the last trial used the same."""
        study = lease.trial.study
        try:
            path = locate(study.model.path, self.settings.data_roots)
        except ServiceError as error:
            raise Rejected(error.detail) from error
        if Path(path).is_dir() and (link := link_outside(Path(path), self.settings.data_roots)):
            raise Rejected(f"the model {study.model.path!r} has a link that leads out of the data directories: {link}")
        training = study.training
        data_key = f"{study.model_key}\n{study.task.model_dump_json()}\n{training.max_length}\n{training.packing}"
        if self._warm.paths and stamp(self._warm.paths) != self._warm.stamp:
            _log.info("data or model files have changed; they are read again")
            self._warm = _Warm()
        if self._warm.prepared is None or self._warm.data_key != data_key:
            self._warm = _Warm()
            cache = TokenisedCache(self.settings.home / "cache" / "tokenised", self.settings.cache_bytes)
            with tempfile.TemporaryDirectory(prefix="cdka-data-") as scratch:
                splits = load_splits(study.task, self.settings.data_roots, Path(scratch))
                prepared = task.prepare(study, path, splits, cache)
            self._warm.prepared, self._warm.splits = prepared, splits
            numbers = splits.parts["train"].numbers if "train" in splits.parts else []
            prepared.rows = numbers if len(numbers) == len(prepared.train) else []
            self._warm.data_key = data_key
        if self._warm.model is None:
            self._warm.model = task.load_model(study, path, self._warm.prepared)
            self._warm.model_key = study.model_key
            self._identify(study, path)
        if lease.trial.inputs is not None and self._warm.inputs is not None:
            differences = lease.trial.inputs.differences(self._warm.inputs)
            if differences:
                raise Rejected(changes_told(differences))
        return self._warm.model, self._warm.prepared

    def _identify(self, study: StudySpec, path: str) -> None:
        """Record what data and model are, and mark their files."""
        warm, prepared, splits = self._warm.model, self._warm.prepared, self._warm.splits
        assert warm is not None
        assert prepared is not None
        assert splits is not None
        embedding = getattr(warm.model, "get_input_embeddings", lambda: None)()
        rows = getattr(embedding, "num_embeddings", None)
        if prepared.tokenizer is not None and rows is not None:
            for name in SPLITS:
                part = splits.parts.get(name)
                require_ids(name, getattr(prepared, name), part.numbers if part else [], rows, prepared.tokenizer)
        folder = model_folder(path, study.model.revision)
        files = [file for part in splits.parts.values() for file in part.paths]
        self._warm.paths = tuple(dict.fromkeys([*files, *([folder] if folder is not None else [])]))
        self._warm.stamp = stamp(self._warm.paths)
        self._warm.inputs = inputs_of(
            splits, prepared.facts.get("classes"), prepared.tokenizer, digest_of(path, study.model.revision), warm.notes
        )


def _end_process() -> None:
    os._exit(70)


_STATES: dict[StopReason | None, Literal["completed", "pruned", "released"]] = {
    None: "completed",
    StopReason.PRUNED: "pruned",
    StopReason.PAUSED: "released",
    StopReason.RELEASED: "released",
}


def _result(outcome: Outcome, artifact: str | None, resources: dict[str, Any]) -> ResultIn:
    resources = {**resources, "steps": outcome.steps}
    try:
        return ResultIn(
            state=_STATES.get(outcome.stop_reason, "cancelled"),
            metrics=outcome.metrics,
            scores=outcome.scores if outcome.stop_reason is None else None,
            artifact=artifact,
            resources=resources,
        )
    except ValidationError as error:
        # A team's own task may return what is no metric.
        return _refused("; ".join(fault["msg"] for fault in error.errors()[:3]), resources)


def _refused(reason: str, resources: dict[str, Any]) -> ResultIn:
    result = failed(FailureKind.ERROR, f"its result was refused: {reason}")
    result.resources = resources
    return result
