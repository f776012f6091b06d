"""The training of one trial on a lent model."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from service.schemas.leases import LeasedTrial
from service.schemas.specs import PARAMETERS, TrainingSpec

from ..failures import Diverged, Rejected
from ..tasks import Task
from ..tasks.task import Prepared, Scores
from .trainer import TrialTrainer

_log = logging.getLogger(__name__)
# Reasons to stop after which the trial will be resumed.
RELEASED = "released"
GIVEN_BACK = frozenset({RELEASED, "paused"})


@dataclass(slots=True)
class Outcome:
    """The outcome of a training. ``stop_reason`` is set if it was told to stop."""

    metrics: dict[str, float]
    scores: list[float] | None
    steps: int
    stop_reason: str | None
    train_seconds: float = 0.0
    use: dict[str, float] = field(default_factory=dict)


class Reports(Protocol):
    """Receives a training's evaluations and progress."""

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Deliver a step's metrics."""
        ...

    def progress(self, step: int) -> None:
        """Note that training has reached a step."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoint to resume from, and where to store new ones.

    ``keep`` takes a complete folder and its step. Two checkpoints are at least ``least_seconds`` apart, unless the
    study names steps.
    """

    resume_from: str | None
    keep: Callable[[str, int], None]
    least_seconds: float


class _Follow(TrainerCallback):
    """Stops training within one step, reports every evaluation, and decides when to write a checkpoint."""

    def __init__(
        self,
        training: TrainingSpec,
        stop_reason: Callable[[], str | None],
        report: Callable[[int, dict[str, float]], None],
        progress: Callable[[int], None],
        checkpoints: Checkpoints,
    ) -> None:
        self._training = training
        self._stop_reason = stop_reason
        self._report = report
        self._progress = progress
        self._checkpoints = checkpoints
        self._saved_at = time.monotonic()
        self._began = 0.0
        self._save_at_epoch_end = False
        # Why training ended before its last step.
        self.stopped_for: str | None = None
        # Seconds in optimizer steps alone, without evaluations and checkpoints.
        self.step_seconds = 0.0
        self.steps = 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.step_seconds += time.perf_counter() - self._began
        self.steps += 1
        self._progress(state.global_step)
        every = self._training.checkpoint_steps
        if every is not None and state.global_step % every == 0:
            if self._training.eval_steps is None and _is_whole(state.epoch):
                # The epoch's evaluation comes first: a resumed trial would skip it.
                self._save_at_epoch_end = True
            else:
                self._save(state, control)
        elif self._training.eval_steps is not None and state.global_step % self._training.eval_steps == 0:
            self._save_if_due(state, control)
        reason = self._stop_reason()
        if reason in GIVEN_BACK and state.global_step >= state.max_steps:
            return  # a trial without steps left is not resumed
        if reason is not None:
            self.stopped_for = reason
            control.should_training_stop = True
            # A resumed trial continues after this step, so everything due at it happens first.
            control.should_save = reason in GIVEN_BACK
            control.should_evaluate = control.should_evaluate and reason in GIVEN_BACK

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped_for is not None:
            # Also called when training stops within an epoch.
            keeps = _is_whole(state.epoch) and self.stopped_for in GIVEN_BACK
            control.should_evaluate = control.should_evaluate and keeps
        elif self._save_at_epoch_end:
            self._save_at_epoch_end = False
            self._save(state, control)
        elif self._training.eval_steps is None:
            self._save_if_due(state, control)

    def _save_if_due(self, state: TrainerState, control: TrainerControl) -> None:
        if (
            self._training.checkpoint_steps is None
            and time.monotonic() - self._saved_at >= self._checkpoints.least_seconds
        ):
            self._save(state, control)

    def _save(self, state: TrainerState, control: TrainerControl) -> None:
        # No checkpoint is needed after the last step.
        control.should_save = state.global_step < state.max_steps

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._saved_at = time.monotonic()
        assert args.output_dir is not None
        self._checkpoints.keep(f"{args.output_dir}/checkpoint-{state.global_step}", state.global_step)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._report(state.global_step, named_metrics(metrics or {}))


def named_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """The Trainer's metrics under the names of studies, without its timings."""
    timings = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    found = {k.removeprefix("eval_"): float(v) for k, v in metrics.items() if k.startswith("eval_")}
    return {k: v for k, v in found.items() if k not in timings}


def train_trial(
    trial: LeasedTrial,
    task: Task,
    model: PeftModel,
    prepared: Prepared,
    reports: Reports,
    stop_reason: Callable[[], str | None],
    checkpoints: Checkpoints,
) -> Outcome:
    """Train and evaluate on the validation split as the study says. A confirmation is evaluated on test, once.

    On one machine's CPU, two trainings of one configuration and seed are identical bit for bit, also if one was
    interrupted and resumed from a checkpoint.

    Raises:
        Diverged: the loss is not finite.
    """
    confirming = trial.phase == "confirmation"
    study = trial.study
    last: dict[str, Any] = {"metrics": {}, "scores": None, "step": None}

    def judge(split: Any) -> Scores:
        scored = task.judge(study, model, split, prepared, study.metrics_wanted)
        last["scores"] = scored.per_example
        return scored

    def on_evaluation(step: int, metrics: dict[str, float]) -> None:
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise Diverged(
                f"{bad[0]} became {metrics[bad[0]]} at step {step}; a lower learning_rate would keep it finite"
            )
        objectives = [o.metric for o in study.all_objectives if o.metric != PARAMETERS]
        missing = [name for name in objectives if name not in metrics]
        if missing:
            there = ", ".join(metrics)
            raise Rejected(f"this data gives no {missing[0]!r} to judge by; it gives: {there}")
        last.update(metrics=metrics, step=step)
        _log.info("step %d: %s", step, ", ".join(f"{name} {value:.5g}" for name, value in metrics.items()))
        reports.report(step, metrics)

    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = study.training.tf32
    try:
        follow = _Follow(study.training, stop_reason, on_evaluation, reports.progress, checkpoints)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory(prefix="cdka-trial-") as scratch:
            trainer = TrialTrainer(
                judge,
                study.training.lora_plus_ratio,
                model=model,
                args=_arguments(trial, scratch, evaluate=not confirming),
                train_dataset=prepared.train,
                eval_dataset=prepared.test if confirming else prepared.validation,
                data_collator=prepared.collator,
                callbacks=[follow],
            )
            # It would print every evaluation.
            trainer.remove_callback(PrinterCallback)
            started = time.perf_counter()
            trainer.train(resume_from_checkpoint=checkpoints.resume_from)
            seconds = time.perf_counter() - started
            steps = trainer.state.global_step
            # A training that reached its last step is complete, even if it was told to stop meanwhile.
            later = stop_reason()
            ended_for = follow.stopped_for or (None if later in GIVEN_BACK else later)
            if ended_for is None and last["step"] != steps:
                trainer.evaluate()
            _log.debug("trial %d: %d steps in %.1f s", trial.number, steps, seconds)
            use = _use(trainer, follow)
            # The Trainer and its accelerator would keep the adapter's optimizer alive until collected.
            trainer.accelerator.free_memory()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return Outcome(last["metrics"], last["scores"], steps, ended_for, seconds, use)


def _is_whole(epoch: float | None) -> bool:
    return epoch is not None and abs(epoch - round(epoch)) < 1e-9


def _use(trainer: TrialTrainer, follow: _Follow) -> dict[str, float]:
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
