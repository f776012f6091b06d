"""The training of one trial on a lent model."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from service.schemas.leases import LeasedTrial
from service.schemas.specs import TrainingSpec

from .failures import Diverged
from .tasks import Task
from .tasks.task import Prepared, Scores

_log = logging.getLogger(__name__)
# On an accelerator, reading a loss waits for the device; on a CPU it costs nothing.
STEPS_BETWEEN_LOSS_CHECKS = 10
# Reasons to stop after which the trial will be taken up again.
RELEASED = "released"
GIVEN_BACK = frozenset({RELEASED, "paused"})


@dataclass(slots=True)
class Outcome:
    """What a training came to. ``stop_reason`` is set where it was told to stop."""

    metrics: dict[str, float]
    scores: list[float] | None
    steps: int
    stop_reason: str | None
    train_seconds: float = 0.0


class Reports(Protocol):
    """Where a training's evaluations and its progress go."""

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Have a step's metrics delivered."""
        ...

    def progress(self, step: int) -> None:
        """Note that training has reached a step."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where a training goes on from, and what becomes of the folders it leaves.

    ``keep`` takes a complete folder and its step. ``least_seconds`` pass between two, unless the study names steps.
    """

    resume_from: str | None
    keep: Callable[[str, int], None]
    least_seconds: float


class _Follow(TrainerCallback):
    """Ends training within one step of a stop, reports every evaluation, and says when to leave a checkpoint."""

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

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress(state.global_step)
        every = self._training.checkpoint_steps
        if every is not None and state.global_step % every == 0:
            self._save(state, control)
        elif self._training.eval_steps is not None and state.global_step % self._training.eval_steps == 0:
            self._save_if_due(state, control)
        if (reason := self._stop_reason()) is not None:
            control.should_training_stop = True
            # Whoever takes a trial up again goes on from this very step: what was due at it is done before.
            control.should_save = reason in GIVEN_BACK
            control.should_evaluate = control.should_evaluate and reason in GIVEN_BACK

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        reason = self._stop_reason()
        if reason is not None:
            # Training that stops within an epoch has this called too.
            whole = state.epoch is not None and abs(state.epoch - round(state.epoch)) < 1e-9
            control.should_evaluate = control.should_evaluate and whole and reason in GIVEN_BACK
        elif self._training.eval_steps is None:
            self._save_if_due(state, control)

    def _save_if_due(self, state: TrainerState, control: TrainerControl) -> None:
        if (
            self._training.checkpoint_steps is None
            and time.monotonic() - self._saved_at >= self._checkpoints.least_seconds
        ):
            self._save(state, control)

    def _save(self, state: TrainerState, control: TrainerControl) -> None:
        # After the last step there is nothing left to go on with.
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


class _TrialTrainer(Trainer):
    """A Trainer that notices a loss that is no number, judges by the task, and knows LoRA+'s two learning rates."""

    def __init__(self, judge: Callable[[Any], Scores], lora_plus_ratio: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._judge = judge
        self._lora_plus_ratio = lora_plus_ratio

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        every = 1 if loss.device.type == "cpu" else STEPS_BETWEEN_LOSS_CHECKS
        if self.state.global_step % every == 0 and not math.isfinite(float(loss)):
            raise Diverged(
                f"the training loss became {float(loss)} at step {self.state.global_step + 1}; "
                "a lower learning_rate or alpha would keep it finite"
            )
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The adapter alone: no pickled arguments, and no search for a vocabulary that never changes.
        model: Any = self.model
        model.save_pretrained(output_dir or self.args.output_dir, save_embedding_layers=False)

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        split = dataloader.dataset
        model: Any = self.model
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                scores = self._judge(split)
        finally:
            model.train(training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.metrics.items()}
        return EvalLoopOutput(np.empty(0), None, metrics, len(split))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        # The task makes its own batches; what is asked of this one is its data set.
        split: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        return DataLoader(split, collate_fn=list)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        if self._lora_plus_ratio != 1:
            model: Any = self.model
            faster = {id(p) for name, p in model.named_parameters() if ".cdka_B." in name or ".lora_B." in name}
            for group in list(optimizer.param_groups):
                mine = [p for p in group["params"] if id(p) in faster]
                group["params"] = [p for p in group["params"] if id(p) not in faster]
                if mine:
                    rest = {k: v for k, v in group.items() if k not in ("params", "lr")}
                    optimizer.add_param_group({"params": mine, "lr": group["lr"] * self._lora_plus_ratio, **rest})
        return optimizer


def named_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """The Trainer's metrics under the names that studies use; its own timings are left out."""
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
    """Train, evaluating on the validation split as the study says; a confirmation is judged once, on the test split.

    Two trainings of one configuration and seed are identical, bit for bit, on one machine's CPU; so is one that was
    interrupted and went on from a checkpoint.

    Raises:
        Diverged: the loss is no longer a number.
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
        last.update(metrics=metrics, step=step)
        _log.info("step %d: %s", step, ", ".join(f"{name} {value:.5g}" for name, value in metrics.items()))
        reports.report(step, metrics)

    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = study.training.tf32
    try:
        with tempfile.TemporaryDirectory(prefix="cdka-trial-") as scratch:
            trainer = _TrialTrainer(
                judge,
                study.training.lora_plus_ratio,
                model=model,
                args=_arguments(trial, scratch, evaluate=not confirming),
                train_dataset=prepared.train,
                eval_dataset=prepared.test if confirming else prepared.validation,
                data_collator=prepared.collator,
                callbacks=[_Follow(study.training, stop_reason, on_evaluation, reports.progress, checkpoints)],
            )
            # It would print every evaluation to the runner's standard output.
            trainer.remove_callback(PrinterCallback)
            started = time.perf_counter()
            trainer.train(resume_from_checkpoint=checkpoints.resume_from)
            seconds = time.perf_counter() - started
            steps = trainer.state.global_step
            if stop_reason() is None and last["step"] != steps:
                trainer.evaluate()
            _log.debug("trial %d: %d steps in %.1f s", trial.number, steps, seconds)
            # The Trainer and its accelerator would keep the adapter's optimizer alive until collected.
            trainer.accelerator.free_memory()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return Outcome(last["metrics"], last["scores"], steps, stop_reason(), seconds)


_OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_fused": "adamw_torch_fused",
    "adafactor": "adafactor",
    "sgd": "sgd",
}


def _arguments(trial: LeasedTrial, scratch: str, *, evaluate: bool) -> TrainingArguments:
    training = trial.study.training
    evaluation: dict[str, Any] = {"eval_strategy": "epoch"}
    if training.eval_steps is not None:
        evaluation = {"eval_strategy": "steps", "eval_steps": training.eval_steps}
    return TrainingArguments(
        output_dir=scratch,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.batch_size,
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
