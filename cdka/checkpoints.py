"""The files of a base model: the tensors they hold, and a digest of them by content."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_LFS_POINTER = b"version https://git-lfs"
_SINGLE = "model.safetensors"
# No header of a real model is longer (100 MB, the limit of the safetensors library).
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a safetensors file: where its bytes begin and end in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def load_pretrained(auto_class: Any, source: str, gguf: str | None, **options: Any) -> tuple[Any, set[str], set[str]]:
    """Load a base model without running its own code.

    Args:
        auto_class: an Auto class of transformers.
        source: folder or hub id.
        gguf: the GGUF file in ``source``, if the weights are in one.
        options: further arguments of ``from_pretrained``.

    Returns:
        The model; the parameters that the files do not have, or have in another shape; and the files' further tensors.

    Raises:
        Exception: transformers and its readers raise anything for files that they cannot read.
    """
    form = {} if gguf is None else {"gguf_file": gguf}
    model, info = auto_class.from_pretrained(
        source,
        trust_remote_code=False,
        output_loading_info=True,
        # A head for other classes is initialised anew.
        ignore_mismatched_sizes=True,
        **form,
        **options,
    )
    if gguf is not None:
        # Loading dequantised the weights; these attributes would mark the model as quantised.
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    return model, set(info["missing_keys"]) | mismatched, set(info["unexpected_keys"])


def model_source(path: str) -> tuple[str, str | None]:
    """A model's folder or hub id, and its GGUF file, where it is one: named by ``path``, or the only one of a folder.

    Raises:
        CheckpointError: a folder without config.json has several GGUF files, or ``path`` is a file of another kind.
    """
    where = Path(path)
    if where.is_file():
        if where.suffix != ".gguf":
            raise CheckpointError(f"{where.name} is a file; a model is a folder, a GGUF file or a hub id")
        return str(where.parent), where.name
    if not where.is_dir() or (where / "config.json").exists():
        return path, None
    files = sorted(file.name for file in where.glob("*.gguf"))
    if len(files) > 1:
        named = ", ".join(files)
        raise CheckpointError(f"the folder has {len(files)} GGUF files ({named}): name one, as {where.name}/{files[0]}")
    return path, files[0] if files else None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights, as transformers chooses them: safetensors, else GGUF, else PyTorch's.

    Raises:
        CheckpointError: the index of the safetensors files cannot be read or names a file that does not exist.
    """
    index = folder / _INDEX
    if not (folder / _SINGLE).exists() and index.exists():
        try:
            found = json.loads(index.read_bytes())
            names = sorted(set(found["weight_map"].values()))
            # transformers needs it, too.
            found["metadata"].get("total_size")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index.name} is not an index of safetensors files") from error
        outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
        if outside:
            raise CheckpointError(f"{index.name} names {outside[0]!r}: the files of a model lie in its folder")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{index.name} names {missing[0]}, which does not exist")
        return [folder / name for name in names]
    for pattern in (_SINGLE, "*.gguf", "pytorch_model*.bin"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    return []


def read_header(file: Path) -> list[Tensor]:
    """The tensors of a safetensors file, by their place in it. Reads no weights.

    Raises:
        CheckpointError: the file is truncated or is not in the format.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start_of_file = stream.read(8)
        if start_of_file == _LFS_POINTER[:8] and (start_of_file + stream.read(32)).startswith(_LFS_POINTER):
            raise CheckpointError(f"{file.name} is a pointer of git-lfs, not the file itself: run git lfs pull")
        stream.seek(8)
        length = int.from_bytes(start_of_file, "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise CheckpointError(f"{file.name} is truncated or is no safetensors file ({size} bytes)")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            start = 8 + length
            tensors = [
                Tensor(
                    name,
                    str(found["dtype"]),
                    tuple(int(n) for n in found["shape"]),
                    start + int(found["data_offsets"][0]),
                    start + int(found["data_offsets"][1]),
                )
                for name, found in header.items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{file.name} is no safetensors file: its header cannot be read") from error
    needed = max((tensor.end for tensor in tensors), default=start)
    if needed > size:
        raise CheckpointError(f"{file.name} is truncated: it has {size} bytes of {needed}")
    return sorted(tensors, key=lambda tensor: tensor.begin)


def tensor_names(folder: Path) -> frozenset[str] | None:
    """The names of a model's tensors; ``None`` if its files do not say so without being loaded.

    Raises:
        CheckpointError: a file is truncated or is not in its format.
    """
    files = weight_files(folder)
    if not files or any(file.suffix != ".safetensors" for file in files):
        return None
    return frozenset(tensor.name for file in files for tensor in read_header(file))


def weights_digest(folder: Path, gguf: str | None = None) -> str:
    """A SHA-256 of a model's weights: those of its folder, or of one GGUF file in it.

    Of safetensors files it depends on names, types, shapes and values, not on how they are spread over files.

    Raises:
        CheckpointError: there are no weights, or a file is truncated or not in its format.
    """
    files = weight_files(folder) if gguf is None else [folder / gguf]
    if not files:
        raise CheckpointError(f"{folder.name} has no weights (model.safetensors, its index, or a GGUF file)")
    lines = [line for file in files for line in _lines(file)]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _lines(file: Path) -> Iterator[str]:
    if file.suffix != ".safetensors":
        with file.open("rb") as stream:
            yield hashlib.file_digest(stream, "sha256").hexdigest()
        return
    tensors = read_header(file)
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as bytes_:
        whole = memoryview(bytes_)
        try:
            for tensor in tensors:
                value = hashlib.sha256(whole[tensor.begin : tensor.end]).hexdigest()
                yield f"{tensor.name} {tensor.dtype} {list(tensor.shape)} {value}"
        finally:
            whole.release()
