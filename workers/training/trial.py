"""The training of one trial on a lent model."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import PrinterCallback, TrainingArguments

import cdka
from service.schemas.leases import LeasedTrial
from service.schemas.specs import PARAMETERS, StopReason, StudySpec

from ..failures import Diverged, Rejected
from ..tasks import Task
from ..tasks.task import Prepared, Scores
from .follow import RESUMED_AFTER, Checkpoints, Follow
from .probe import layers_without_gradient, require_finite_loss
from .trainer import TrialTrainer

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Outcome:
    """The outcome of a training. ``stop_reason`` is set if it was told to stop."""

    metrics: dict[str, float]
    scores: list[float] | None
    steps: int
    stop_reason: StopReason | None
    train_seconds: float = 0.0
    use: dict[str, Any] = field(default_factory=dict)


class Reports(Protocol):
    """Receives a training's evaluations and progress."""

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Deliver a step's metrics."""
        ...

    def progress(self, step: int, total_steps: int) -> None:
        """Note that training has reached a step."""
        ...

    def note(self, text: str) -> None:
        """Tell what was found about the model before the study's first step."""
        ...


class _Evaluations:
    """Judges a trial's model, checks and reports each evaluation, and keeps the latest one."""

    def __init__(self, study: StudySpec, task: Task, model: PeftModel, prepared: Prepared, reports: Reports) -> None:
        self._study = study
        self._task = task
        self._model = model
        self._prepared = prepared
        self._reports = reports
        self.metrics: dict[str, float] = {}
        self.per_example: list[float] | None = None
        self.step: int | None = None

    def judge(self, split: Any) -> Scores:
        """Judge the model on a split."""
        scored = self._task.judge(self._study, self._model, split, self._prepared, self._study.metrics_wanted)
        self.per_example = scored.per_example
        return scored

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Check and report the metrics of a step.

        Raises:
            Diverged: a metric is not finite.
            Rejected: the data gives no value for an objective.
        """
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise Diverged(f"{name} became {value} at step {step}; a lower learning_rate would keep it finite")
        for objective in self._study.all_objectives:
            if objective.metric != PARAMETERS and objective.metric not in metrics:
                there = ", ".join(metrics)
                raise Rejected(f"this data yields no metric {objective.metric!r}; available: {there}")
        self.metrics, self.step = metrics, step
        _log.info("step %d: %s", step, ", ".join(f"{name} {value:.5g}" for name, value in metrics.items()))
        self._reports.report(step, metrics)


def train_trial(
    trial: LeasedTrial,
    task: Task,
    model: PeftModel,
    prepared: Prepared,
    reports: Reports,
    stop_reason: Callable[[], StopReason | None],
    checkpoints: Checkpoints,
) -> Outcome:
    """Train and evaluate on the validation split as the study says. A confirmation is evaluated on test, once.

    On one machine's CPU, two trainings of one configuration and seed are identical bit for bit, also if one was
    interrupted and resumed from a checkpoint.

    Raises:
        Diverged: the loss or a metric is not finite.
        Rejected: the data gives no value for an objective.
    """
    confirming = trial.phase == "confirmation"
    evaluations = _Evaluations(trial.study, task, model, prepared, reports)
    follow = Follow(trial.study.training, stop_reason, evaluations.record, reports.progress, checkpoints)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with _tf32(trial.study.training.tf32), tempfile.TemporaryDirectory(prefix="cdka-trial-") as scratch:
        trainer = TrialTrainer(
            evaluations.judge,
            trial.study.training.lora_plus_ratio,
            model=model,
            args=_arguments(trial, scratch, evaluate=not confirming),
            train_dataset=prepared.train,
            eval_dataset=prepared.test if confirming else prepared.validation,
            data_collator=prepared.collator,
            callbacks=[follow],
        )
        # It would print every evaluation.
        trainer.remove_callback(PrinterCallback)
        if trial.inputs is None and trial.checkpoint is None:
            _probe(trainer, prepared, trial.study.training.batch_size, reports)
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=checkpoints.resume_from)
        seconds = time.perf_counter() - started
        steps = trainer.state.global_step
        # A training that reached its last step is complete, even if it was told to stop meanwhile.
        later = stop_reason()
        ended_for = follow.stopped_for or (None if later in RESUMED_AFTER else later)
        if ended_for is None and evaluations.step != steps:
            trainer.evaluate()
        _log.debug("trial %d: %d steps in %.1f s", trial.number, steps, seconds)
        use: dict[str, Any] = dict(_use(trainer, follow))
        if confirming and ended_for is None:
            use["validation"] = _on_validation(trainer, prepared, evaluations)
        # The Trainer and its accelerator would keep the adapter's optimizer alive until collected.
        trainer.accelerator.free_memory()
    return Outcome(evaluations.metrics, evaluations.per_example, steps, ended_for, seconds, use)


def _probe(trainer: TrialTrainer, prepared: Prepared, batch_size: int, reports: Reports) -> None:
    """Look at the first examples before the study's first step.

    Raises:
        Rejected: the untrained model's loss on them is not finite, or several processes would train a layer that gets
            no gradient.
    """
    rows = [prepared.train[k] for k in range(min(batch_size, len(prepared.train)))]
    require_finite_loss(trainer, rows, prepared.rows)
    unused = layers_without_gradient(trainer, rows[0])
    if not unused:
        return
    said = f"{len(unused)} adapted layers get no gradient from the first example: {cdka.listed(unused)}"
    if trainer.args.world_size > 1:
        # DistributedDataParallel waits for a gradient of every parameter.
        raise Rejected(f"{said}. Name the others in adapter.target_modules, or set resources.processes to 1")
    _log.warning(said)
    reports.note(said)


def _on_validation(trainer: TrialTrainer, prepared: Prepared, evaluations: _Evaluations) -> dict[str, float]:
    """The metrics of a confirmation run on the split by which its configuration was chosen."""
    on_test = evaluations.per_example
    found = trainer.evaluation_loop(trainer.get_eval_dataloader(prepared.validation), "validation")
    evaluations.per_example = on_test
    named = {name.removeprefix("eval_"): float(value) for name, value in (found.metrics or {}).items()}
    return {name: value for name, value in named.items() if math.isfinite(value)}


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allow TF32 in products of fp32 matrices, or forbid it, for a while."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _use(trainer: TrialTrainer, follow: Follow) -> dict[str, float]:
    """Speed of a training: seconds per step, examples and tokens (including padding) per second."""
    use: dict[str, float] = {}
    if follow.steps and follow.step_seconds > 0:
        use["step_seconds"] = round(follow.step_seconds / follow.steps, 6)
        use["samples_per_second"] = round(trainer.samples * trainer.args.world_size / follow.step_seconds, 3)
        if trainer.tokens:
            use["tokens_per_second"] = round(trainer.tokens * trainer.args.world_size / follow.step_seconds, 3)
    if torch.cuda.is_available():
        use["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated()
    return use


_OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_fused": "adamw_torch_fused",
    "adafactor": "adafactor",
    "sgd": "sgd",
}


def _arguments(trial: LeasedTrial, scratch: str, *, evaluate: bool) -> TrainingArguments:
    training = trial.study.training
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    evaluation: dict[str, Any] = {"eval_strategy": "epoch"}
    if training.eval_steps is not None:
        evaluation = {"eval_strategy": "steps", "eval_steps": training.eval_steps}
    return TrainingArguments(
        output_dir=scratch,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.batch_size // processes,
        ddp_find_unused_parameters=False if processes > 1 else None,
        gradient_accumulation_steps=training.gradient_accumulation,
        activation_checkpointing=training.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        train_sampling_strategy="group_by_length" if training.batching == "length" else "random",
        optim=_OPTIMIZERS[training.optimizer],
        learning_rate=trial.params["learning_rate"],
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_ratio,
        bf16=training.precision == "bf16",
        seed=trial.seed,
        data_seed=trial.seed,
        **(evaluation if evaluate else {"eval_strategy": "no"}),
        save_strategy="no",
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
    )
