"""The Trainer of one trial, and the order of its batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import EvalLoopOutput

from ..failures import Diverged, Rejected
from ..tasks.task import Scores

# Reading a loss synchronises with an accelerator; on a CPU it costs nothing.
STEPS_BETWEEN_LOSS_CHECKS = 10
# Batches since the last check are kept to tell a bad example from a training that diverged. Larger ones are not.
MOST_KEPT_BYTES = 1 << 20


class TrialTrainer(Trainer):
    """A Trainer that detects a non-finite loss, evaluates by the task, and supports LoRA+'s two learning rates."""

    def __init__(self, judge: Callable[[Any], Scores], lora_plus_ratio: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._judge = judge
        self.samples = self.tokens = 0
        self._unchecked: list[Any] = []
        self._lora_plus_ratio = lora_plus_ratio

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One step, with its loss checked and its examples and tokens counted.

        Raises:
            Diverged: the loss is not finite.
            Rejected: nor is it without the adapter, so that no configuration can help.
        """
        first = next(iter(inputs.values()))
        self.samples += len(first)
        tokens = inputs.get("input_ids")
        self.tokens += 0 if tokens is None else tokens.numel()
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        if sum(v.nbytes for v in inputs.values() if isinstance(v, torch.Tensor)) <= MOST_KEPT_BYTES:
            self._unchecked.append(inputs)
        every = 1 if loss.device.type == "cpu" else STEPS_BETWEEN_LOSS_CHECKS
        if self.state.global_step % every == 0:
            if not math.isfinite(float(loss)):
                raise self._cause(model, loss)
            self._unchecked.clear()
        return loss

    def _cause(self, model: Any, loss: torch.Tensor) -> Exception:
        """Why a loss is not finite: an example that the base model cannot take, or the training."""
        step = self.state.global_step + 1
        plain = self.accelerator.unwrap_model(model)
        with torch.no_grad(), plain.disable_adapter():
            for batch in self._unchecked:
                with self.compute_loss_context_manager(), self.accelerator.autocast():
                    alone = float(cast(torch.Tensor, self.compute_loss(plain, self._prepare_inputs(batch))))
                if not math.isfinite(alone):
                    return Rejected(
                        f"the training loss became {float(loss)} at step {step}, and without the adapter it is {alone} "
                        "on the same batch: the data or the base model is to blame, not the configuration"
                    )
        return Diverged(
            f"the training loss became {float(loss)} at step {step}; "
            "a lower learning_rate or alpha would keep it finite"
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Save only the adapter: no pickled arguments, no vocabulary.
        model: Any = self.model
        model.save_pretrained(output_dir or self.args.output_dir, save_embedding_layers=False)

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate the loader's dataset by the task."""
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

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        split: Any = train_dataset if train_dataset is not None else self.train_dataset
        lengths = [len(ids) for ids in split["input_ids"]]
        return LengthGrouped(lengths, self.args.train_batch_size, self.args.data_seed or self.args.seed)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """A loader that only carries the dataset to :meth:`evaluation_loop`."""
        # The task makes its own batches; only the dataset of this loader is used.
        split: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        return DataLoader(split, collate_fn=list)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's optimizer, with B's learning rate multiplied for LoRA+."""
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


class LengthGrouped(Sampler[int]):
    """Indices in batches of similar length, drawn each epoch from the seed and the epoch's number.

    A training that resumes within an epoch therefore sees the same order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = list(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._batch_size, generator=generator))
