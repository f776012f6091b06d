"""The artifact store: a folder, or any store that fsspec supports."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from peft import PeftModel

import cdka


def store_adapter(
    model: PeftModel,
    artifacts_url: str,
    study_id: str,
    number: int,
    attempt: int,
    task: cdka.TaskFile | None = None,
    processing: Any = None,
) -> str:
    """Save the adapter as PEFT does (safetensors) under the artifacts URL; returns its URL.

    ``task`` says what it is for, ``processing`` is its tokenizer or image processor.
    """
    target = f"{_trial_url(artifacts_url, study_id, number)}/attempt-{attempt}/adapter"
    with tempfile.TemporaryDirectory(prefix="cdka-adapter-") as scratch:
        # Embeddings are never resized here; PEFT would load the base model's config to check.
        model.save_pretrained(scratch, save_embedding_layers=False)
        # PEFT's model card is an empty template.
        (Path(scratch) / "README.md").unlink(missing_ok=True)
        if task is not None:
            task.write(Path(scratch))
            _name_base(Path(scratch) / "adapter_config.json", task.base_model)
        if processing is not None:
            processing.save_pretrained(scratch)
        return _store(scratch, target)


def _name_base(file: Path, name: str) -> None:
    """Name the base model as its study does, not by the path on this machine."""
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "base_model_name_or_path": name}, indent=2, sort_keys=True) + "\n")


def store_checkpoint(folder: str, artifacts_url: str, study_id: str, number: int, attempt: int, step: int) -> str:
    """Store a checkpoint under the artifacts URL; returns its URL."""
    return _store(folder, f"{_trial_url(artifacts_url, study_id, number)}/checkpoints/{attempt:03d}-{step:08d}")


def fetch(url: str, folder: str) -> None:
    """Copy an artifact into an empty folder.

    Raises:
        OSError: it does not exist or cannot be read.
    """
    files, path = fsspec.core.url_to_fs(url)
    files.get(f"{path}/", f"{folder.rstrip('/')}/", recursive=True)


def remove(url: str) -> None:
    """Remove an artifact, if it exists."""
    files, path = fsspec.core.url_to_fs(url)
    if files.exists(path):
        files.rm(path, recursive=True)


def _trial_url(artifacts_url: str, study_id: str, number: int) -> str:
    return f"{artifacts_url.rstrip('/')}/studies/{study_id}/trials/{number:05d}"


def _store(folder: str, target: str) -> str:
    """Store a folder completely or not at all.

    In a folder it is written under another name and renamed when complete. A bucket cannot rename; there it is read
    only after the server knows its URL.
    """
    files, path = fsspec.core.url_to_fs(target)
    in_directory = isinstance(files, LocalFileSystem)
    written = f"{path}.partial" if in_directory else path
    files.makedirs(path.rpartition("/")[0], exist_ok=True)
    try:
        if files.exists(written):
            files.rm(written, recursive=True)
        files.put(f"{folder.rstrip('/')}/", f"{written}/", recursive=True)
    except OSError:
        # Free the space of an incomplete copy.
        with suppress(OSError):
            files.rm(written, recursive=True)
        raise
    if in_directory:
        if files.exists(path):
            files.rm(path, recursive=True)
        files.mv(written, path, recursive=True)
    return target


def size_of(artifact: str) -> int:
    """Size of an artifact in bytes."""
    files, path = fsspec.core.url_to_fs(artifact)
    return int(files.du(path))
