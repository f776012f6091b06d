"""Activations of frozen lower layers, computed once and reused in every epoch of every trial.

If the lower layers have no adapter and no dropout, they are the same function of an example in each epoch and trial.
Their outputs are computed in a fixed order and in fixed batches, independent of a trial's seed, so that trainings stay
reproducible to the bit. They are kept in a file that is mapped into memory.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..tasks.batches import device_of
from ..tasks.task import Prepared

_log = logging.getLogger(__name__)
ROWS = 16


@dataclass
class FrozenPrefix:
    """Outputs of a model's first ``depth`` layers on every training example, by the example's tokens."""

    layers: str
    depth: int
    _places: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    _states: Any = None

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Make the model use these outputs instead of its first layers for known examples.

        Other inputs, such as the validation split, still go through the layers.
        """
        layers: Any = model.get_submodule(self.layers)
        originals = [layers[k] for k in range(self.depth)]
        batch: dict[str, Tensor | None] = {"states": None}

        def look(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            batch["states"] = self._found(kwargs) if module.training else None

        # The hook sits on the module that gets the tokens: PEFT's call bypasses the model's own hooks.
        parent = model.get_submodule(self.layers.rpartition(".")[0])
        handle = parent.register_forward_pre_hook(look, with_kwargs=True)
        for k, original in enumerate(originals):
            layers[k] = _Known(original, batch, first=k == 0)
        try:
            yield
        finally:
            handle.remove()
            for k, original in enumerate(originals):
                layers[k] = original

    def _found(self, inputs: dict[str, Any]) -> Tensor | None:
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if ids is None or mask is None:
            return None
        lengths = mask.sum(1).tolist()
        rows = ids.tolist()
        keys = [_key(row[:length]) for row, length in zip(rows, lengths, strict=True)]
        if any(key not in self._places for key in keys):
            return None
        width = self._states.shape[1]
        found = torch.zeros(len(keys), ids.shape[1], width, dtype=_TORCH[self._states.dtype.str])
        for row, key in enumerate(keys):
            start, length = self._places[key]
            found[row, :length] = torch.from_numpy(self._states[start : start + length])
        return found.to(ids.device)


class _Enough(Exception):
    """Raised to end a forward pass once the wanted outputs are computed."""


class _Known(nn.Module):
    """A frozen layer that is skipped if its outputs are known; the first one returns the last one's output."""

    def __init__(self, layer: nn.Module, batch: dict[str, Tensor | None], *, first: bool) -> None:
        super().__init__()
        self._layer = layer
        self._batch = batch
        self._first = first

    def __getattr__(self, name: str) -> Any:
        # Models read attributes of their layers, such as the attention's kind.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_layer"), name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        states = self._batch["states"]
        if states is None:
            return self._layer(hidden_states, *args, **kwargs)
        return states.to(hidden_states.dtype) if self._first else hidden_states


_TORCH = {np.dtype("float32").str: torch.float32, np.dtype("float16").str: torch.float16}


def _key(ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=16).digest()


def frozen_depth(model: nn.Module, adapted: Sequence[str]) -> tuple[str, int]:
    """The name of a model's list of layers, and how many of the first have no adapter; 0 if caching is impossible.

    Outside of the list only heads after it may be trained, and the lower layers must not be random in training.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and any(n.startswith(f"{name}.") for n in adapted)
    }
    if len(lists) != 1:
        return "", 0
    ((name, layers),) = lists.items()
    inside = [n for n in adapted if n.startswith(f"{name}.")]
    if len(inside) != len(adapted):
        return "", 0
    depth = min(int(n.removeprefix(f"{name}.").split(".", 1)[0]) for n in inside)
    below = [m for layer in list(layers)[:depth] for m in layer.modules()]
    outside = [m for n, m in model.named_modules() if not n.startswith(f"{name}.")]
    random = [m for m in [*below, *outside] if isinstance(m, nn.Dropout) and m.p > 0]
    config: Any = model.config
    # Some models apply dropout without a module: OPT's ``dropout``, BART's ``layerdrop``.
    drawn = [key for key, value in config.to_dict().items() if "drop" in key and isinstance(value, float) and value > 0]
    return (name, 0) if random or drawn else (name, depth)


def compute_prefix(
    model: nn.Module,
    layers: str,
    depth: int,
    prepared: Prepared,
    precision: str,
    folder: Path,
    most_bytes: int,
    is_wanted: Callable[[], bool],
) -> FrozenPrefix | None:
    """Run every training example through the first layers, on the device of the training.

    The outputs are in an unnamed file in ``folder``, which ends with this process. ``None`` if they would exceed
    ``most_bytes``, or if the trial was revoked meanwhile.
    """
    split = prepared.train
    if not {"input_ids", "attention_mask"} <= set(split.column_names):
        return None
    examples = [row["input_ids"] for row in split.select_columns(["input_ids"])]
    unique = sorted({tuple(ids) for ids in examples}, key=lambda ids: (len(ids), ids))
    config: Any = model.config
    tokens, width = sum(map(len, unique)), int(config.hidden_size)
    size = tokens * width * 4
    if size > most_bytes:
        _log.info("outputs of %d frozen layers would take %d bytes: they are computed in every epoch", depth, size)
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(prefix="prefix-", dir=folder) as file:
        # The mapping outlives the file's handle.
        states = np.memmap(file, dtype=np.float32, mode="w+", shape=(max(1, tokens), width))
    prefix = FrozenPrefix(layers, depth, _states=states)
    if torch.cuda.is_available() and not getattr(model, "is_quantized", False):
        model.to("cuda")
    device = device_of(model)
    listed: Any = model.get_submodule(layers)
    seen: dict[str, Tensor] = {}

    def take(_: nn.Module, __: Any, out: Any) -> None:
        seen["states"] = out[0] if isinstance(out, tuple) else out
        raise _Enough

    handle = listed[depth - 1].register_forward_hook(take)
    training = model.training
    model.eval()
    start = 0
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            for first in range(0, len(unique), ROWS):
                if not is_wanted():
                    return None
                chosen = unique[first : first + ROWS]
                longest = len(chosen[-1])
                ids = torch.zeros(len(chosen), longest, dtype=torch.long)
                mask = torch.zeros(len(chosen), longest, dtype=torch.long)
                for row, tokens_of in enumerate(chosen):
                    ids[row, : len(tokens_of)] = torch.tensor(tokens_of)
                    mask[row, : len(tokens_of)] = 1
                # The layers above are not needed.
                with suppress(_Enough):
                    model(input_ids=ids.to(device), attention_mask=mask.to(device))
                given = seen["states"].float().cpu().numpy()
                for row, tokens_of in enumerate(chosen):
                    states[start : start + len(tokens_of)] = given[row, : len(tokens_of)]
                    prefix._places[_key(tokens_of)] = (start, len(tokens_of))
                    start += len(tokens_of)
    finally:
        handle.remove()
        model.train(training)
    _log.info("outputs of %d frozen layers on %d examples are kept: %d bytes", depth, len(unique), size)
    return prefix
