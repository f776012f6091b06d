"""Load a saved adapter on its base model, or merge it into one, without guessing what it is for."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.utils.hub import cached_file

from .checkpoints import load_pretrained, model_source, weights_digest
from .errors import AdapterError, CdkaError, CheckpointError
from .exchange import CONFIG, PREFIX, WEIGHTS, SavedAdapter, plain_key, read_adapter
from .layer import CdkaLayer, layer_dimensions
from .shapes import AUTO_MODELS, listed
from .task_file import PROCESSING, TaskFile, read_task_file

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_KINDS = {
    "SEQ_CLS": "sequence_classification",
    "CAUSAL_LM": "causal_lm",
    "SEQ_2_SEQ_LM": "seq2seq_lm",
}


def load_adapted(
    folder: str | Path, base: str | None = None, *, kind: str | None = None, any_base: bool = False
) -> tuple[PeftModel, Any]:
    """Load an adapter on its base model, with the names of its classes; ready for ``transformers.pipeline``.

    Args:
        folder: the adapter's folder.
        base: folder, GGUF file or hub name of the base model; by default the one that the adapter names, which is
            looked for in the working folder, in those of the environment variable CDKA_DATA_DIRS, and on the hub.
        kind: the kind of task, for adapters that do not say.
        any_base: whether a base whose weights have another SHA-256 is taken, if its layers fit.

    Returns:
        The model in evaluation mode, and its tokenizer or image processor (``None`` if there is none).

    Raises:
        CdkaError: the folder holds no CDKA adapter, the base is not the adapter's, or a head is missing.
    """
    path = Path(folder)
    saved, task = read_adapter(path), read_task_file(path)
    kind = _kind(saved, task, kind)
    name = base or (task.base_model if task is not None else saved.config.base_model_name_or_path)
    if not name:
        raise AdapterError(f"{path} does not name its base model: name it")
    where, gguf = model_source(name if base is not None else _found(name))
    if not Path(where).is_dir() and not _HUB_NAME.fullmatch(where):
        raise CheckpointError(f"there is no folder {name!r} here: name the base model")
    revision = task.base_revision if task is not None and base is None else None
    if task is not None and not any_base:
        _require_base(where, gguf, revision, task, name)
    form: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    try:
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False, **form)
        _set_classes(config, kind, saved, task)
        model, missing, _ = load_pretrained(AUTO_MODELS[kind], where, gguf, config=config, revision=revision)
    except CdkaError:
        raise
    except Exception as error:  # transformers raises anything for files that it cannot read
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"the base model {name!r} cannot be loaded: {said}") from error
    saved = _fit_names(saved, model)
    _require_layers(model, saved, name)
    _require_heads(model, saved, missing)
    try:
        with warnings.catch_warnings():
            # What is missing is rejected below.
            warnings.filterwarnings("ignore", "Found missing adapter keys")
            adapted = _load(model, path, saved)
    except Exception as error:  # PEFT raises several kinds
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise AdapterError(f"{path} does not fit the base model {name!r}: {said}") from error
    adapted_layers = {_plain(n) for n, layer in adapted.named_modules() if isinstance(layer, CdkaLayer)}
    extra = sorted(adapted_layers - saved.layers.keys())
    if extra:
        raise AdapterError(
            f"{name!r} is not the adapter's base model: the adapter would reach {listed(extra)}, for which it has no "
            "weights"
        )
    return adapted.eval(), _processing(path, where, revision, form, kind)


def merge_adapter(
    folder: str | Path, out: str | Path, base: str | None = None, *, kind: str | None = None, any_base: bool = False
) -> None:
    """Write a base model with an adapter merged, its class names, and its tokenizer or image processor.

    Raises:
        CdkaError: as for :func:`load_adapted`, or ``out`` is the base model or is not empty.
    """
    target = Path(out)
    if base is not None and target.resolve() == Path(base).resolve():
        raise AdapterError(f"{target} is the base model: write to another folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise AdapterError(f"{target} is not an empty folder")
    model, processing = load_adapted(folder, base, kind=kind, any_base=any_base)
    try:
        merged: Any = model.merge_and_unload(safe_merge=True)
        merged.save_pretrained(target)
    except (OSError, ValueError, RuntimeError) as error:
        raise AdapterError(f"the merged model cannot be written: {str(error).splitlines()[0]}") from error
    if processing is not None:
        processing.save_pretrained(target)


def _found(name: str) -> str:
    """The place of a base model by the name that a study gave it."""
    for folder in ["", *os.environ.get("CDKA_DATA_DIRS", "").split(os.pathsep)]:
        if (Path(folder) / name).exists():
            return str(Path(folder) / name)
    return name


def _kind(saved: SavedAdapter, task: TaskFile | None, given: str | None) -> str:
    if given is not None and given not in AUTO_MODELS:
        raise AdapterError(f"unknown kind {given!r}; available: {', '.join(AUTO_MODELS)}")
    said = _KINDS.get(str(getattr(saved.config.task_type, "value", saved.config.task_type)))
    known = task.kind if task is not None else said
    if known is None and given is None:
        raise AdapterError(f"the adapter does not say what task it is for: name the kind ({', '.join(AUTO_MODELS)})")
    same_class = given is not None and known is not None and AUTO_MODELS[given] is AUTO_MODELS.get(known)
    if given is not None and known is not None and not same_class:
        raise AdapterError(f"the adapter is for {known}, not for {given}")
    found = known if known is not None else given
    if found not in AUTO_MODELS:
        raise AdapterError(f"the adapter is for {found!r}, which has no model class here; load it with your own code")
    return found


def _require_base(where: str, gguf: str | None, revision: str | None, task: TaskFile, name: str) -> None:
    if task.base_sha256 is None:
        return
    folder: Path | None = Path(where)
    if not Path(where).is_dir():
        try:
            config = cached_file(where, "config.json", revision=revision)
        except OSError as error:
            raise CheckpointError(f"the base model {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
        folder = None if config is None else Path(config).parent
    if folder is None:
        return
    found = weights_digest(folder, gguf)
    if found != task.base_sha256:
        raise AdapterError(
            f"the adapter was trained on {task.base_model!r}, whose weights have SHA-256 {task.base_sha256[:12]}; "
            f"those of {name!r} have {found[:12]}"
        )


def _set_classes(config: Any, kind: str, saved: SavedAdapter, task: TaskFile | None) -> None:
    """Give the model one output per class, with its name."""
    if kind == "sequence_regression":
        config.num_labels, config.problem_type = 1, "regression"
    elif kind.endswith("classification"):
        if task is not None and task.classes is not None:
            config.id2label = dict(enumerate(task.classes))
            config.label2id = {name: k for k, name in enumerate(task.classes)}
        elif (count := _class_count(config, kind, saved)) is not None and count != config.num_labels:
            config.num_labels = count


def _class_count(config: Any, kind: str, saved: SavedAdapter) -> int | None:
    """The number of outputs of an adapter's head: the size in it that depends on the number of classes."""
    shapes = []
    for count in (3, 4):
        other = type(config).from_dict({**config.to_dict(), "id2label": {str(k): str(k) for k in range(count)}})
        with torch.device("meta"):
            shapes.append({name: p.shape for name, p in AUTO_MODELS[kind].from_config(other).named_parameters()})
    for key, value in saved.others.items():
        name = _plain(key)
        three, four = shapes[0].get(name), shapes[1].get(name)
        if three is None or four is None or three == four or len(three) != value.dim():
            continue
        axis = next(k for k, (a, b) in enumerate(zip(three, four, strict=True)) if a != b)
        return int(value.shape[axis])
    return None


def _plain(key: str) -> str:
    return key.removeprefix(PREFIX)


def _fit_names(saved: SavedAdapter, model: Any) -> SavedAdapter:
    """An adapter whose names are the model's: ``module`` is left out where DistributedDataParallel added it."""
    there = {name for name, _ in model.named_modules()}

    def fitted(name: str) -> str:
        plain = ".".join(part for part in name.split(".") if part != "module")
        return plain if name not in there and plain in there else name

    layers = {fitted(name): factors for name, factors in saved.layers.items()}
    others = {}
    for key, value in saved.others.items():
        owner, _, parameter = _plain(key).rpartition(".")
        others[f"{PREFIX}{fitted(owner)}.{parameter}"] = value
    return replace(saved, layers=layers, others=others)


def _load(model: Any, path: Path, saved: SavedAdapter) -> PeftModel:
    """The model with the adapter, whose file may have names that wrappers have changed."""
    wanted = {f"{PREFIX}{name}.cdka_{part}" for name in saved.layers for part in "AB"} | saved.others.keys()
    state = load_file(path / WEIGHTS)
    if state.keys() == wanted:
        return PeftModel.from_pretrained(model, str(path))
    names = {fitted.removeprefix(PREFIX): fitted for fitted in wanted}
    renamed = {}
    for key, value in state.items():
        plain = _plain(plain_key(key))
        bare = ".".join(part for part in plain.split(".") if part != "module")
        renamed[names.get(plain) or names.get(bare) or key] = value
    with tempfile.TemporaryDirectory(prefix="cdka-adapter-") as scratch:
        shutil.copyfile(path / CONFIG, Path(scratch) / CONFIG)
        save_file(renamed, Path(scratch) / WEIGHTS, metadata={"format": "pt"})
        return PeftModel.from_pretrained(model, scratch)


def _require_layers(model: Any, saved: SavedAdapter, name: str) -> None:
    there = dict(model.named_modules())
    missing = sorted(layer for layer in saved.layers if layer not in there)
    if missing:
        raise AdapterError(f"{name!r} is not the adapter's base model: it has no layer {listed(missing)}")
    for layer, (A, B) in saved.layers.items():
        wanted = (B.shape[2] * A.shape[2], A.shape[1] * B.shape[1])
        found = layer_dimensions(there[layer])
        if wanted != found:
            raise AdapterError(
                f"{name!r} is not the adapter's base model: its {layer} maps {found[0]} to {found[1]} values, "
                f"the adapter's {wanted[0]} to {wanted[1]}"
            )


def _require_heads(model: Any, saved: SavedAdapter, missing: Collection[str]) -> None:
    trained: dict[str, Tensor] = {_plain(key): value for key, value in saved.others.items()}
    parameters = dict(model.named_parameters())
    lacking = sorted(name for name in set(missing) & set(parameters) if name not in trained)
    if lacking:
        raise AdapterError(f"neither the adapter nor its base model has the weights {listed(lacking)}")
    wrong: Sequence[str] = sorted(
        name for name, value in trained.items() if name in parameters and parameters[name].shape != value.shape
    )
    if wrong:
        raise AdapterError(f"weights of the adapter have another shape than the model's: {listed(wrong)}")


def _processing(folder: Path, where: str, revision: str | None, form: dict[str, Any], kind: str) -> Any:
    """The tokenizer or image processor: the adapter's, else the base model's; ``None`` if there is none."""
    loader: Any = AutoImageProcessor if kind == "image_classification" else AutoTokenizer
    options: dict[str, Any] = {"backend": "pil"} if kind == "image_classification" else {}
    own = any((folder / name).is_file() for name in PROCESSING)
    try:
        if own:
            return loader.from_pretrained(str(folder), trust_remote_code=False, **options)
        return loader.from_pretrained(where, revision=revision, trust_remote_code=False, **form, **options)
    except Exception:  # a model without a tokenizer is still a model
        return None
