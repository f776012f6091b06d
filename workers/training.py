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
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from service.schemas.leases import LeasedTrial

from .failures import Diverged
from .tasks import Task
from .tasks.task import Prepared

_log = logging.getLogger(__name__)
# On an accelerator, reading a loss waits for the device; on a CPU it costs nothing.
STEPS_BETWEEN_LOSS_CHECKS = 10


@dataclass(slots=True)
class Outcome:
    """What a training came to. ``stop_reason`` is set where it was told to stop."""

    metrics: dict[str, float]
    scores: list[float] | None
    steps: int
    stop_reason: str | None


class Reports(Protocol):
    """Where a training's evaluations and its progress go."""

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Have a step's metrics delivered."""
        ...

    def progress(self, step: int) -> None:
        """Note that training has reached a step."""
        ...


class _Follow(TrainerCallback):
    """Ends training within one step of a stop, and reports every evaluation."""

    def __init__(
        self,
        stop_reason: Callable[[], str | None],
        report: Callable[[int, dict[str, float]], None],
        progress: Callable[[int], None],
    ) -> None:
        self._stop_reason = stop_reason
        self._report = report
        self._progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress(state.global_step)
        if self._stop_reason() is not None:
            control.should_training_stop = True
            control.should_evaluate = False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._report(state.global_step, named_metrics(metrics or {}))


class _CheckedTrainer(Trainer):
    """A Trainer that notices a loss that is no number."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        every = 1 if loss.device.type == "cpu" else STEPS_BETWEEN_LOSS_CHECKS
        if self.state.global_step % every == 0 and not math.isfinite(float(loss)):
            raise Diverged(
                f"the training loss became {float(loss)} at step {self.state.global_step + 1}; "
                "a lower learning_rate or alpha would keep it finite"
            )
        return loss


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
) -> Outcome:
    """Train, evaluating each epoch on the validation split; a confirmation is judged once, on the test split.

    Raises:
        Diverged: the loss is no longer a number.
    """
    confirming = trial.phase == "confirmation"
    study = trial.study
    objective = study.objective.metric
    last: dict[str, Any] = {"metrics": {}, "scores": None}

    def compute_metrics(prediction: Any) -> dict[str, float]:
        logits = prediction.predictions
        logits = logits[0] if isinstance(logits, tuple) else logits
        scored = task.score(np.asarray(logits), np.asarray(prediction.label_ids), objective)
        last["scores"] = scored.per_example
        return scored.metrics

    def on_evaluation(step: int, metrics: dict[str, float]) -> None:
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise Diverged(
                f"{bad[0]} became {metrics[bad[0]]} at step {step}; a lower learning_rate would keep it finite"
            )
        last["metrics"] = metrics
        reports.report(step, metrics)

    with tempfile.TemporaryDirectory(prefix="cdka-trial-") as scratch:
        trainer = _CheckedTrainer(
            model=model,
            args=_arguments(trial, scratch, evaluate=not confirming),
            train_dataset=prepared.train,
            eval_dataset=prepared.test if confirming else prepared.validation,
            data_collator=prepared.collator,
            compute_metrics=compute_metrics,
            callbacks=[_Follow(stop_reason, on_evaluation, reports.progress)],
        )
        # It would print every evaluation to the runner's standard output.
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        if stop_reason() is None and confirming:
            trainer.evaluate()
        steps = trainer.state.global_step
        _log.debug("trial %d: %d steps in %.1f s", trial.number, steps, time.perf_counter() - started)
        # The Trainer and its accelerator would keep the adapter's optimizer alive until collected.
        trainer.accelerator.free_memory()
    return Outcome(last["metrics"], last["scores"], steps, stop_reason())


def _arguments(trial: LeasedTrial, scratch: str, *, evaluate: bool) -> TrainingArguments:
    training = trial.study.training
    return TrainingArguments(
        output_dir=scratch,
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=max(training.batch_size, 32),
        learning_rate=trial.params["learning_rate"],
        weight_decay=training.weight_decay,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_ratio,
        bf16=training.precision == "bf16",
        seed=trial.seed,
        data_seed=trial.seed,
        eval_strategy="epoch" if evaluate else "no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
    )
