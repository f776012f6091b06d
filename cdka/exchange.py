"""Convert adapters to LoRA and LoKr, and from the format of the paper's public code."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .config import CdkaConfig
from .errors import AdapterError
from .rearrangement import truncate_factors
from .task_file import copy_meaning

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."


# Components that torch.compile, FSDP and activation checkpointing add to names.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def plain_key(key: str) -> str:
    """A key of a saved adapter without what wrappers of the whole model or of compiled parts add to it."""
    plain = _WRAPPERS.sub("", key)
    # DistributedDataParallel's. Within a name "module" may be the model's own.
    return plain[len("module.") :] if plain.startswith("module.base_model.") else plain


def plain_names(model: nn.Module) -> dict[str, str]:
    """The names of a model's modules, by their names without what wrappers of its parts add."""
    wrapped = {
        name for name, module in model.named_modules() if isinstance(module, DataParallel | DistributedDataParallel)
    }

    def plain(name: str) -> str:
        for outer in sorted(wrapped, key=len, reverse=True):
            if name.startswith(f"{outer}.module.") or name == f"{outer}.module":
                name = outer + name[len(f"{outer}.module") :]
        return plain_key(name)

    return {name: plain(name) for name, _ in model.named_modules()}


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """An adapter as stored in a folder: its config, and per layer ``(A, B)`` with the scale folded into B.

    ``kernels`` has the kernel sizes of convolutions. They are known only from a model; a folder does not record them.
    """

    config: CdkaConfig
    layers: dict[str, tuple[Tensor, Tensor]]
    others: dict[str, Tensor]
    kernels: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of trained adapter parameters."""
        return sum(A.numel() + B.numel() for A, B in self.layers.values())


def lora_factors(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """``down (r*r1*r2, d_in)`` and ``up (d_out, r*r1*r2)`` with ``up @ down = sum_i B_i (x) A_i``.

    ``B (x) A = (B (x) I_r1) (I_r2 (x) A)``: components are stacked, so the rank is ``r * r1 * r2``.
    """
    r1, r2 = A.shape[1], B.shape[2]
    row, column = torch.eye(r1, dtype=B.dtype), torch.eye(r2, dtype=A.dtype)
    down = torch.cat([torch.kron(column, a.contiguous()) for a in A])
    up = torch.cat([torch.kron(b.contiguous(), row) for b in B], dim=1)
    return down, up


def read_adapter(directory: str | Path) -> SavedAdapter:
    """Read a saved CDKA adapter without its base model.

    Raises:
        AdapterError: the folder holds no CDKA adapter, or factors are missing or do not match.
    """
    folder = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise AdapterError(f"{folder} holds no adapter: {name} is missing")
    try:
        kind = json.loads((folder / CONFIG).read_text()).get("peft_type")
        if kind != "CDKA":
            advice = "load it with peft.PeftModel.from_pretrained, and merge it with merge_and_unload"
            raise AdapterError(f"{folder} holds an adapter of type {kind}, not CDKA: {advice}")
        loaded: Any = CdkaConfig.from_pretrained(str(folder))
        state = load_file(folder / WEIGHTS)
    except AdapterError:
        raise
    except Exception as error:
        raise AdapterError(f"{folder} holds an adapter that cannot be read: {error}") from error
    return _parse(loaded, state)


def _parse(config: CdkaConfig, state: dict[str, Tensor]) -> SavedAdapter:
    from .model import scale_by_module

    layers, others = {}, {}
    state = {plain_key(key): value for key, value in state.items()}
    for key, value in state.items():
        name, _, part = key.removeprefix(PREFIX).rpartition(".cdka_")
        if part == "A":
            B = state.get(f"{key[:-1]}B")
            if B is None or value.dim() != 3 or B.dim() != 3 or value.shape[0] != B.shape[0]:
                raise AdapterError(f"the factors of {name} are incomplete or do not match")
            scale = scale_by_module(config, name, r=value.shape[0], r2=B.shape[2])
            layers[name] = (value, B * scale)
        elif part != "B":
            others[key] = value
    if not layers:
        raise AdapterError("the adapter has no CDKA factors")
    return SavedAdapter(config, layers, others)


def _of_model(model: PeftModel, adapter_name: str) -> SavedAdapter:
    from .layer import CdkaLayer

    config = model.peft_config.get(adapter_name)
    if not isinstance(config, CdkaConfig):
        raise AdapterError(f"the model has no CDKA adapter named {adapter_name!r}")
    _refuse_weight_start(config)
    plain = plain_names(model)
    adapted = {
        plain[name].removeprefix(PREFIX): layer
        for name, layer in model.named_modules()
        if isinstance(layer, CdkaLayer) and adapter_name in layer.cdka_A
    }
    layers = {
        name: (
            layer.cdka_A[adapter_name].detach().cpu(),
            layer.cdka_B[adapter_name].detach().cpu() * layer.scaling[adapter_name],
        )
        for name, layer in adapted.items()
    }
    bases = {name: layer.get_base_layer() for name, layer in adapted.items()}
    kernels = {name: base.kernel_size for name, base in bases.items() if isinstance(base, nn.Conv2d)}
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    factors = {f"{PREFIX}{name}.cdka_{part}" for name in layers for part in "AB"}
    named = {plain_parameter(key, plain): value.detach().cpu() for key, value in state.items()}
    others = {key: value for key, value in named.items() if key not in factors}
    return SavedAdapter(config, layers, others, kernels)


def plain_parameter(key: str, names: dict[str, str]) -> str:
    """A parameter's name without what wrappers add, by :func:`plain_names`."""
    owner, part = key, ""
    while owner not in names:
        owner, _, last = owner.rpartition(".")
        part = f".{last}{part}"
    return f"{names[owner]}{part}".removeprefix(".")


def _refuse_weight_start(config: CdkaConfig) -> None:
    if config.init_weights == "weight":
        raise AdapterError(
            "an adapter with init_weights='weight' depends on the base weight it was taken from; "
            "merge it instead of exporting it"
        )


def to_lora(source: PeftModel | str | Path, directory: str | Path, adapter_name: str = "default") -> int:
    """Write the adapter as a PEFT LoRA adapter that computes the same, for servers that support LoRA.

    Each layer's rank is ``r*r1*r2`` and its alpha equals its rank, so that servers' ``alpha/rank`` is 1; lambda is
    folded into the up factor. Heads and other ``modules_to_save`` are included.

    Args:
        source: a PEFT model, or the folder of a saved adapter of linear layers; a folder does not record the kernels
            of convolutions.
        directory: the folder to write.
        adapter_name: the adapter, where ``source`` is a model.

    Returns:
        The largest rank over the layers, which servers need as ``max_lora_rank``.

    Raises:
        AdapterError: there is no such adapter, or it has ``init_weights="weight"``.
    """
    adapter = _source(source, adapter_name)
    state = dict(adapter.others)
    ranks = {}
    for name, (A, B) in adapter.layers.items():
        down, up = lora_factors(A, B)
        if name in adapter.kernels:  # LoRA's pair of convolutions: the kernel first, then 1 x 1
            down, up = down.view(len(down), -1, *adapter.kernels[name]), up[..., None, None]
        state[f"{PREFIX}{name}.lora_A.weight"], state[f"{PREFIX}{name}.lora_B.weight"] = down, up
        ranks[name] = down.shape[0]
    rank = max(ranks.values())
    uneven = {name: r for name, r in ranks.items() if r != rank}
    _write(
        directory,
        adapter.config,
        state,
        {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": uneven,
            "alpha_pattern": uneven,
            "lora_dropout": adapter.config.dropout,
            "bias": {"cdka_only": "lora_only"}.get(adapter.config.bias, adapter.config.bias),
            "target_modules": sorted(adapter.layers),
        },
    )
    _copy_meaning(source, directory)
    return rank


def to_lokr(source: PeftModel | str | Path, directory: str | Path, adapter_name: str = "default") -> dict[str, float]:
    """Write the adapter as LoKr in LyCORIS' and PEFT's keys: ``lokr_w1 = lambda * B`` and ``lokr_w2 = A``.

    Exact for r = 1. For r > 1 each layer's dW becomes the single Kronecker product nearest to it.

    PEFT's LoKr derives the factors' shapes from ``decompose_factor``, so it loads the file only if it derives
    ``(d_out/r1, r2)`` for w1. LyCORIS takes the shapes from the file.

    Returns:
        Relative error ``|dW - lokr|_F / |dW|_F`` by layer; 0 where the export is exact.

    Raises:
        AdapterError: there is no such adapter, it has ``init_weights="weight"``, or it adapts convolutions or trained
            biases.
    """
    adapter = _source(source, adapter_name)
    if adapter.config.bias != "none":
        raise AdapterError(f"LoKr keeps no biases, and the adapter has bias={adapter.config.bias!r}; merge it instead")
    if adapter.kernels:
        raise AdapterError(f"LoKr export is for linear layers; these are convolutions: {', '.join(adapter.kernels)}")
    state, errors = dict(adapter.others), {}
    for name, (A, B) in adapter.layers.items():
        error = 0.0
        if A.shape[0] > 1:
            A, B, error = truncate_factors(A, B, 1)
        state[f"{PREFIX}{name}.lokr_w1"] = B[0].contiguous()
        state[f"{PREFIX}{name}.lokr_w2"] = A[0].contiguous()
        errors[name] = error
    # With a rank as large as every dimension, loaders use full factors and ignore alpha.
    rank = max(max(*A.shape, *B.shape) for A, B in adapter.layers.values())
    _write(
        directory,
        adapter.config,
        state,
        {"peft_type": "LOKR", "r": rank, "alpha": rank, "target_modules": sorted(adapter.layers)},
    )
    _copy_meaning(source, directory)
    return errors


def from_reference(directory: str | Path, target: str | Path, *, r1: int, r2: int, r: int, alpha: float) -> CdkaConfig:
    """Convert an adapter of the paper's public code to a CDKA adapter that computes the same.

    That code stores stacked factors under LoRA's names: ``lora_A.weight`` of shape ``(r1*r, d_in/r2)`` has component i
    in rows ``i::r``, ``lora_B.weight`` of shape ``(d_out/r1, r2*r)`` has component i in columns ``i::r``
    (github.com/rainstonee/CDKA).

    Args:
        directory: folder with ``adapter_model.safetensors``.
        target: the folder to write.
        r1: component size on the output side; the file does not record it.
        r2: component size on the input side.
        r: number of components.
        alpha: numerator of the scale ``alpha/sqrt(r*r2)``.

    Raises:
        AdapterError: the file is missing, or a factor's shape does not fit ``(r1, r2, r)``.
    """
    path = Path(directory) / WEIGHTS
    if not path.is_file():
        raise AdapterError(f"{directory} holds no adapter: {WEIGHTS} is missing")
    state, names = {}, []
    for key, value in load_file(path).items():
        if key.endswith(".lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            names.append(name.removeprefix(PREFIX))
            state[f"{name}.cdka_A"] = _unstack(value, r1, r, 0, f"r1*r = {r1}*{r} rows of {key}")
        elif key.endswith(".lora_B.weight"):
            name = key.removesuffix(".lora_B.weight")
            state[f"{name}.cdka_B"] = _unstack(value, r2, r, 1, f"r2*r = {r2}*{r} columns of {key}")
        else:
            state[key] = value
    if not names:
        raise AdapterError(f"{path} has no stacked factors (keys that end in lora_A.weight)")
    config = CdkaConfig(r1=r1, r2=r2, r=r, alpha=alpha, target_modules=sorted(names))
    _save(Path(target), state, config.to_dict())
    return config


def _unstack(stacked: Tensor, size: int, r: int, axis: int, what: str) -> Tensor:
    if stacked.dim() != 2 or stacked.shape[axis] != size * r:
        raise AdapterError(f"expected {what}; its shape is {tuple(stacked.shape)}")
    if axis == 0:
        return stacked.view(size, r, -1).transpose(0, 1).contiguous()
    return stacked.view(-1, size, r).permute(2, 0, 1).contiguous()


def _source(source: PeftModel | str | Path, adapter_name: str) -> SavedAdapter:
    if not isinstance(source, str | Path):
        return _of_model(source, adapter_name)
    adapter = read_adapter(source)
    _refuse_weight_start(adapter.config)
    return adapter


SHARED_FIELDS = ("task_type", "base_model_name_or_path", "revision", "modules_to_save")


def _copy_meaning(source: PeftModel | str | Path, directory: str | Path) -> None:
    """What a saved adapter is for, and its tokenizer, go with its exports."""
    if isinstance(source, str | Path):
        copy_meaning(Path(source), Path(directory))


def _write(directory: str | Path, config: CdkaConfig, state: dict[str, Tensor], fields: dict[str, Any]) -> None:
    original = config.to_dict()
    shared = {name: original[name] for name in SHARED_FIELDS if original.get(name) is not None}
    _save(Path(directory), state, shared | fields | {"inference_mode": True})


def _save(folder: Path, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    plain = {k: sorted(v) if isinstance(v, set) else getattr(v, "value", v) for k, v in config.items()}
    (folder / CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")
