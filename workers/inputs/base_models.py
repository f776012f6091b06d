"""The base model: loaded once, restored exactly after every trial."""

from __future__ import annotations

import copy
import json
import re
import zipfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.config import PeftConfig
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import BitsAndBytesConfig, set_seed
from transformers.utils.import_utils import is_bitsandbytes_available

import cdka
from service.schemas.specs import StudySpec

from ..failures import Rejected, is_of_host, root_cause


class BaseWeightsChanged(RuntimeError):
    """A trial changed the frozen base weights, so this process must be replaced."""


@dataclass(slots=True)
class WarmModel:
    """A base model that trials borrow.

    ``heads`` are trained in full beside an adapter (see :func:`cdka.head_modules`). ``new_modules`` have no pretrained
    weights (a new head, or a part of one). They are initialised from the trial's seed whenever the model is lent, so a
    warm runner trains exactly what a cold one would.
    """

    model: Any
    new_modules: tuple[str, ...]
    heads: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    _fingerprint: int = field(init=False)
    _frozen: dict[str, bool] = field(init=False)
    _buffers: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._fingerprint = self.fingerprint()
        self._frozen = {name: p.requires_grad for name, p in self.model.named_parameters()}
        self._buffers = {name: b.detach().clone() for name, b in self.model.named_buffers()}

    def lend(self, config: PeftConfig, seed: int) -> PeftModel:
        """The model with a new adapter; head and adapter are initialised from ``seed``."""
        set_seed(seed)
        self.draw_heads()
        lent = get_peft_model(self.model, config)
        for parameter in lent.parameters():
            if parameter.requires_grad:
                # Small updates of 16-bit weights would round to zero.
                parameter.data = parameter.data.float()
        return lent

    def draw_heads(self) -> None:
        """Initialise the modules without pretrained weights from torch's current seed."""
        for name in self.new_modules:
            self._draw(self.model.get_submodule(name))

    def _draw(self, module: nn.Module) -> None:
        for child in module.modules():
            for parameter in child.parameters(recurse=False):
                # transformers skips parameters that are marked as initialised.
                parameter._is_hf_initialized = False  # type: ignore[attr-defined]
            self.model._init_weights(child)

    def take_back(self, lent: PeftModel) -> None:
        """Remove the adapter, restore the model's head and check the base weights.

        Raises:
            BaseWeightsChanged: the frozen weights are no longer those that were loaded.
        """
        wrapped: nn.Module = lent.get_base_model()
        # Must come first: PEFT would leave the trained copies in place.
        for name, module in list(wrapped.named_modules()):
            if isinstance(module, ModulesToSaveWrapper):
                parent, _, child = name.rpartition(".")
                setattr(wrapped.get_submodule(parent), child, module.original_module)
        lent.unload()
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        if self.model.is_activation_checkpointing:
            self.model.activation_checkpointing_disable()
        for name, buffer in self.model.named_buffers():
            # Running statistics of normalisation layers are buffers that training changes.
            buffer.copy_(self._buffers[name])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._frozen[name])
            parameter.grad = None
        if self.fingerprint() != self._fingerprint:
            raise BaseWeightsChanged("the base weights changed during the trial")

    def fingerprint(self) -> int:
        """A hash of every bit of the pretrained weights (the head's are left out)."""
        heads = tuple(f"{name}." for name in self.new_modules)
        value = 0
        for name, parameter in sorted(self.model.named_parameters()):
            if not name.startswith(heads):
                value = hash((value, name, int(torch.hash_tensor(parameter.detach()).item())))
        return value


def load_warm(
    auto_class: Any, model_path: str, study: StudySpec, *, keep_head: bool = True, **kwargs: Any
) -> WarmModel:
    """Load a study's base model and note which of its modules have no pretrained weights.

    Only heads may lack weights or have them in another shape; they are then initialised anew. Without ``keep_head``
    the parts of a head whose shape depends on the number of classes are, too.

    Raises:
        Rejected: it cannot be loaded, or its files do not fit its config.
    """
    try:
        path, file = cdka.model_source(model_path)
    except cdka.CheckpointError as error:
        raise Rejected(str(error)) from error
    if study.training.quantization == "4bit":
        kwargs["quantization_config"] = _four_bits(study)
    elif study.training.precision == "fp32":
        kwargs["dtype"] = torch.float32
    _require_own_files(Path(path), study.model.path)
    try:
        names = cdka.tensor_names(Path(path)) if Path(path).is_dir() and file is None else None
        model, missing, unexpected = cdka.load_pretrained(
            auto_class, path, file, revision=study.model.revision, **kwargs
        )
    except Exception as error:  # transformers and its readers raise anything for the files of users
        if is_of_host(error):
            raise
        said = _unreadable_file(path) or root_cause(error).replace(path, study.model.path)
        raise Rejected(f"the model {study.model.path!r} cannot be loaded: {said}") from error
    heads = cdka.head_modules(model, study.task.architecture, _names_loaded(model, missing) if names is None else names)
    require_fit(model, study.model.path, heads, missing, unexpected)
    if file is None and Path(path).is_dir() and not hasattr(model.config, "quantization_config"):
        _require_floats(model, Path(path), study.model.path)
    notes = []
    own = set() if keep_head or not heads else _class_dependent(auto_class, model.config) - missing
    if own:
        missing |= own
        notes.append("the checkpoint's head is for other classes and is initialised anew")
    made = new_modules(model, missing)
    _require_finite(model, made)
    if made:
        notes.append(f"initialised anew in every trial: {cdka.listed(made)}")
    return WarmModel(model, made, heads, tuple(notes))


# What formats of adapters call their tensors.
_ADAPTERS = re.compile(r"\.(lora_[AB]|lora_(up|down)|lora_embedding_[AB]|lokr_w\d|hada_w\d|cdka_[AB])\b")
_INTEGERS = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})


def _require_own_files(folder: Path, path: str) -> None:
    """Check that a model's folder holds no adapter, and that the index of its PyTorch files names files beside it.

    Raises:
        Rejected: it does not, or the index cannot be read.
    """
    if (folder / "adapter_config.json").exists():
        raise Rejected(
            f"{path!r} holds an adapter (adapter_config.json): name its base model, or merge the adapter into it first"
        )
    index = folder / "pytorch_model.bin.index.json"
    if not index.is_file():
        return
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Rejected(f"the model {path!r} cannot be loaded: {index.name} is no index of files") from error
    if outside := next((n for n in names if not isinstance(n, str) or Path(n).name != n), None):
        raise Rejected(f"the model {path!r} cannot be loaded: {index.name} names {outside!r}, outside of its folder")


def _unreadable_file(path: str) -> str | None:
    """What is wrong with a PyTorch file of a model, which torch reports without its name."""
    for file in sorted(Path(path).glob("pytorch_model*.bin")) if Path(path).is_dir() else []:
        with file.open("rb") as stream:
            start = stream.read(64)
        if start.startswith(b"version https://git-lfs"):
            return f"{file.name} is a pointer of git-lfs, not the file itself: run git lfs pull"
        if start.startswith(b"PK") and not zipfile.is_zipfile(file):
            return f"{file.name} is truncated"
    return None


def _require_floats(model: nn.Module, folder: Path, path: str) -> None:
    """Check that weights are stored as floating-point numbers: others were quantised, and would be read as they stand.

    Raises:
        Rejected: one is of integers, or is 8-bit with a scale beside it.
    """
    parameters = {_last_names(name) for name, _ in model.named_parameters()}
    tensors = [t for file in cdka.weight_files(folder) if file.suffix == ".safetensors" for t in cdka.read_header(file)]
    scaled = {t.name.rpartition("_scale")[0] for t in tensors if "_scale" in t.name}
    for tensor in tensors:
        is_weight = _last_names(tensor.name) in parameters
        if is_weight and (tensor.dtype in _INTEGERS or (tensor.dtype.startswith("F8") and tensor.name in scaled)):
            raise Rejected(
                f"the files of {path!r} are quantised ({tensor.name} is stored as {tensor.dtype}), but its config has "
                "no quantization_config to read them by: use the original weights"
            )


def _last_names(name: str) -> str:
    """The end of a tensor's name, which is the same with and without the base model's prefix."""
    return ".".join(name.split(".")[-3:])


def _require_finite(model: nn.Module, new: Collection[str]) -> None:
    """Check that every pretrained weight is finite.

    Raises:
        Rejected: one is not; names it.
    """
    for name, parameter in model.named_parameters():
        if cdka.is_in_heads(name, new) or not parameter.is_floating_point() or parameter.is_meta:
            continue
        if not bool(torch.isfinite(parameter).all()):
            raise Rejected(f"the model's weight {name} has values that are not finite")


def _class_dependent(auto_class: Any, config: Any) -> set[str]:
    """The parameters whose shape depends on the number of classes."""
    other = copy.deepcopy(config)
    other.num_labels = config.num_labels + 1
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in auto_class.from_config(config).named_parameters()}
        more = {name: p.shape for name, p in auto_class.from_config(other).named_parameters()}
    return {name for name, shape in shapes.items() if more.get(name) != shape}


def _names_loaded(model: nn.Module, missing: Collection[str]) -> set[str]:
    return {name for name, _ in model.named_parameters()} - set(missing)


def require_fit(
    model: nn.Module, path: str, heads: Collection[str], missing: Iterable[str], unexpected: Iterable[str]
) -> None:
    """Check that a checkpoint's tensors are those that the model's config asks for, heads aside.

    Args:
        model: the model as it was loaded.
        path: its name in the study.
        heads: see :func:`cdka.head_modules`.
        missing: the parameters that the files lack or have in another shape.
        unexpected: the tensors of the files that the model has no place for.

    Raises:
        Rejected: a weight outside of the heads is missing, or the files have layers that the config leaves out.
    """
    parameters = {name for name, _ in model.named_parameters()}
    lacking = sorted(parameters & set(missing))
    outside = [name for name in lacking if not cdka.is_in_heads(name, heads)]
    if outside and len(lacking) == len(parameters):
        raise Rejected(f"no tensor in the files of {path!r} has the name of a weight of {type(model).__name__}")
    if outside:
        raise Rejected(
            f"the files of {path!r} do not fit its config: they lack {len(outside)} weights of the pretrained model, "
            f"or have them in another shape: {cdka.listed(outside)}. Only heads may be new"
        )
    adapters = sorted(name for name in unexpected if _ADAPTERS.search(name))
    if adapters:
        raise Rejected(
            f"the files of {path!r} hold an adapter's weights beside the model's, which would be ignored: "
            f"{cdka.listed(adapters)}. Merge the adapter into the model first"
        )
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    known = {_pattern(name.removeprefix(prefix)) for name in parameters}
    left_out = sorted(name for name in unexpected if _pattern(name.removeprefix(prefix)) in known)
    if left_out:
        raise Rejected(
            f"the config of {path!r} leaves out layers that its files have: {cdka.listed(left_out)}. "
            "Set its number of layers to that of the files"
        )


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def new_modules(model: nn.Module, missing: Collection[str]) -> tuple[str, ...]:
    """The largest modules whose parameters are all missing from the checkpoint, such as heads.

    Raises:
        Rejected: only a part of a module is missing.
    """
    wanted = {name for name, _ in model.named_parameters()} & set(missing)
    found: list[str] = []
    for name, module in model.named_modules():
        inside = [f"{name}.{key}" for key, _ in module.named_parameters()]
        if name and inside and wanted.issuperset(inside) and not name.startswith(tuple(f"{f}." for f in found)):
            found.append(name)
    rest = sorted(key for key in wanted if not key.startswith(tuple(f"{f}." for f in found)))
    if rest:
        raise Rejected(f"the model's files lack {len(rest)} of its weights ({rest[0]} among them): save it whole")
    return tuple(found)


def _four_bits(study: StudySpec) -> BitsAndBytesConfig:
    if not torch.cuda.is_available() or not is_bitsandbytes_available():
        raise Rejected("training.quantization: 4bit needs CUDA and bitsandbytes on the runners; set it to none")
    compute = torch.bfloat16 if study.training.precision == "bf16" else torch.float32
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
