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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..tasks.batches import device_of
from ..tasks.task import Prepared

_log = logging.getLogger(__name__)
ROWS = 16
_BYTES = 4  # of a float32


@dataclass(frozen=True, slots=True)
class FrozenLayers:
    """The first ``depth`` modules of a model's list of layers ``name``: none of them has an adapter."""

    name: str
    depth: int

    def modules(self, model: nn.Module) -> list[nn.Module]:
        """The layers themselves."""
        return list(self.list_in(model))[: self.depth]

    def list_in(self, model: nn.Module) -> nn.ModuleList:
        """The list that they are the first of."""
        found = model.get_submodule(self.name)
        assert isinstance(found, nn.ModuleList)
        return found


@dataclass(frozen=True, slots=True)
class Storage:
    """Where activations are kept, and how many bytes at most."""

    folder: Path
    most_bytes: int


class ActivationCache:
    """Outputs of frozen layers on training examples, by the example's tokens.

    They are in an unnamed file of ``tokens`` rows and ``width`` columns, which ends with this process.
    """

    def __init__(self, layers: FrozenLayers, tokens: int, width: int, folder: Path) -> None:
        self.layers = layers
        self._places: dict[bytes, tuple[int, int]] = {}
        self._filled = 0
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix="prefix-", dir=folder) as file:
            # The mapping outlives the file's handle.
            self._states = np.memmap(file, dtype=np.float32, mode="w+", shape=(max(1, tokens), width))

    def add(self, ids: Sequence[int], states: np.ndarray[Any, Any]) -> None:
        """Keep the outputs on one example: a row for each token."""
        end = self._filled + len(ids)
        self._states[self._filled : end] = states[: len(ids)]
        self._places[_key(ids)] = (self._filled, len(ids))
        self._filled = end

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Make the model use these outputs instead of its first layers for known examples.

        Other inputs, such as the validation split, still go through the layers.
        """
        layers = self.layers.list_in(model)
        originals = self.layers.modules(model)
        batch: dict[str, Tensor | None] = {"states": None}

        def look(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            batch["states"] = self._find(kwargs) if module.training else None

        # The hook sits on the module that gets the tokens: PEFT's call bypasses the model's own hooks.
        parent = model.get_submodule(self.layers.name.rpartition(".")[0])
        handle = parent.register_forward_pre_hook(look, with_kwargs=True)
        for k, original in enumerate(originals):
            layers[k] = _Known(original, batch, first=k == 0)
        try:
            yield
        finally:
            handle.remove()
            for k, original in enumerate(originals):
                layers[k] = original

    def _find(self, inputs: dict[str, Any]) -> Tensor | None:
        """The outputs on a padded batch, ``None`` unless all its examples are known."""
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if ids is None or mask is None:
            return None
        lengths = mask.sum(1).tolist()
        keys = [_key(row[:length]) for row, length in zip(ids.tolist(), lengths, strict=True)]
        if any(key not in self._places for key in keys):
            return None
        found = torch.zeros(len(keys), ids.shape[1], self._states.shape[1])
        for row, key in enumerate(keys):
            start, length = self._places[key]
            found[row, :length] = torch.from_numpy(self._states[start : start + length])
        return found.to(ids.device)


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


def _key(ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=16).digest()


def find_frozen_layers(model: nn.Module, adapted: Sequence[str]) -> FrozenLayers | None:
    """The layers below the first of the ``adapted`` modules; ``None`` if their outputs cannot be reused.

    Outside of the list of layers only heads after it may be trained, and the lower layers must not be random in
    training.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and any(n.startswith(f"{name}.") for n in adapted)
    }
    if len(lists) != 1:
        return None
    ((name, layers),) = lists.items()
    if not all(n.startswith(f"{name}.") for n in adapted):
        return None
    depth = min(int(n.removeprefix(f"{name}.").split(".", 1)[0]) for n in adapted)
    below = [m for layer in list(layers)[:depth] for m in layer.modules()]
    outside = [m for n, m in model.named_modules() if not n.startswith(f"{name}.")]
    random = any(isinstance(m, nn.Dropout) and m.p > 0 for m in [*below, *outside])
    config: Any = model.config
    # Some models apply dropout without a module: OPT's ``dropout``, BART's ``layerdrop``.
    drawn = any("drop" in key and isinstance(value, float) and value > 0 for key, value in config.to_dict().items())
    return FrozenLayers(name, depth) if depth and not random and not drawn else None


def compute_activations(
    model: nn.Module,
    layers: FrozenLayers,
    prepared: Prepared,
    precision: str,
    storage: Storage,
    is_wanted: Callable[[], bool],
) -> ActivationCache | None:
    """Run every training example through the frozen layers, on the device of the training.

    ``None`` if the outputs would exceed the storage, or if the trial was revoked meanwhile.
    """
    if not {"input_ids", "attention_mask"} <= set(prepared.train.column_names):
        return None
    examples = {tuple(row["input_ids"]) for row in prepared.train.select_columns(["input_ids"])}
    ordered = sorted(examples, key=lambda ids: (len(ids), ids))
    config: Any = model.config
    tokens, width = sum(map(len, ordered)), int(config.hidden_size)
    size = tokens * width * _BYTES
    if size > storage.most_bytes:
        message = "outputs of %d frozen layers would take %d bytes: they are computed in every epoch"
        _log.info(message, layers.depth, size)
        return None
    cache = ActivationCache(layers, tokens, width, storage.folder)
    if torch.cuda.is_available() and not getattr(model, "is_quantized", False):
        model.to("cuda")
    with _outputs(model, layers, precision) as outputs:
        for first in range(0, len(ordered), ROWS):
            if not is_wanted():
                return None
            chosen = ordered[first : first + ROWS]
            for ids, states in zip(chosen, outputs(chosen), strict=True):
                cache.add(ids, states)
    _log.info("outputs of %d frozen layers on %d examples are kept: %d bytes", layers.depth, len(ordered), size)
    return cache


class _Enough(Exception):
    """Raised to end a forward pass once the wanted outputs are computed."""


@contextmanager
def _outputs(
    model: nn.Module, layers: FrozenLayers, precision: str
) -> Iterator[Callable[[Sequence[Sequence[int]]], np.ndarray[Any, Any]]]:
    """A function from a batch of examples to the last frozen layer's outputs, padded, as float32."""
    device = device_of(model)
    seen: dict[str, Tensor] = {}

    def take(_: nn.Module, __: Any, out: Any) -> None:
        seen["states"] = out[0] if isinstance(out, tuple) else out
        raise _Enough

    def outputs(examples: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        ids = torch.zeros(len(examples), max(map(len, examples)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(examples):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        # The layers above are not needed.
        with suppress(_Enough):
            model(input_ids=ids.to(device), attention_mask=mask.to(device))
        found: np.ndarray[Any, Any] = seen["states"].float().cpu().numpy()
        return found

    handle = layers.modules(model)[-1].register_forward_hook(take)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield outputs
    finally:
        handle.remove()
        model.train(training)
