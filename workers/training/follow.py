"""Follow a training: stop it in time, report its evaluations, and decide when to write a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from service.schemas.specs import StopReason, TrainingSpec

# Reasons to stop after which the trial will be resumed.
RESUMED_AFTER = frozenset({StopReason.RELEASED, StopReason.PAUSED, StopReason.WAITING})


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoint to resume from, and where to store new ones.

    ``keep`` takes a complete folder and its step. Two checkpoints are at least ``least_seconds`` apart, unless the
    study names steps.
    """

    resume_from: str | None
    keep: Callable[[str, int], None]
    least_seconds: float


class Follow(TrainerCallback):
    """Stops training within one step, reports every evaluation, and decides when to write a checkpoint."""

    def __init__(
        self,
        training: TrainingSpec,
        stop_reason: Callable[[], StopReason | None],
        report: Callable[[int, dict[str, float]], None],
        progress: Callable[[int, int], None],
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
        self.stopped_for: StopReason | None = None
        # Seconds in optimizer steps alone, without evaluations and checkpoints.
        self.step_seconds = 0.0
        self.steps = 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start timing a step."""
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the step's time, save if a checkpoint is due, and stop if told to."""
        self.step_seconds += time.perf_counter() - self._began
        self.steps += 1
        self._progress(state.global_step, state.max_steps)
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
        if reason in RESUMED_AFTER and state.global_step >= state.max_steps:
            return  # a trial without steps left is not resumed
        if reason is not None:
            self.stopped_for = reason
            control.should_training_stop = True
            # A resumed trial continues after this step, so everything due at it happens first.
            control.should_save = reason in RESUMED_AFTER
            control.should_evaluate = control.should_evaluate and reason in RESUMED_AFTER

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save if a checkpoint is due."""
        if self.stopped_for is not None:
            # Also called when training stops within an epoch.
            keeps = _is_whole(state.epoch) and self.stopped_for in RESUMED_AFTER
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
        """Hand over the checkpoint that was written."""
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
        """Report the evaluation."""
        self._report(state.global_step, named_metrics(metrics or {}))


def named_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """The Trainer's metrics under the names of studies, without its timings."""
    timings = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    found = {k.removeprefix("eval_"): float(v) for k, v in metrics.items() if k.startswith("eval_")}
    return {k: v for k, v in found.items() if k not in timings}


def _is_whole(epoch: float | None) -> bool:
    return epoch is not None and abs(epoch - round(epoch)) < 1e-9
