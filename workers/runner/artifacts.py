"""Where trained adapters go: a directory, or whatever fsspec reaches."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem
from peft import PeftModel


def store_adapter(model: PeftModel, artifacts_url: str, study_id: str, number: int, attempt: int) -> str:
    """Save the adapter as PEFT does (safetensors) and put it under the artifacts URL; returns where it lies."""
    target = f"{_trial_url(artifacts_url, study_id, number)}/attempt-{attempt}/adapter"
    with tempfile.TemporaryDirectory(prefix="cdka-adapter-") as scratch:
        # Embeddings are never resized here; PEFT would look for the base model's config to find that out.
        model.save_pretrained(scratch, save_embedding_layers=False)
        # PEFT's model card is a form to fill in, not a description of this adapter.
        (Path(scratch) / "README.md").unlink(missing_ok=True)
        return _store(scratch, target)


def store_checkpoint(folder: str, artifacts_url: str, study_id: str, number: int, attempt: int, step: int) -> str:
    """Put a checkpoint under the artifacts URL; returns where it lies."""
    return _store(folder, f"{_trial_url(artifacts_url, study_id, number)}/checkpoints/{attempt:03d}-{step:08d}")


def fetch(url: str, folder: str) -> None:
    """Copy what lies at an artifact's URL into an empty folder.

    Raises:
        OSError: it is not there, or not readable.
    """
    files, path = fsspec.core.url_to_fs(url)
    files.get(f"{path}/", f"{folder.rstrip('/')}/", recursive=True)


def remove(url: str) -> None:
    """Remove what lies at an artifact's URL, if anything does."""
    files, path = fsspec.core.url_to_fs(url)
    if files.exists(path):
        files.rm(path, recursive=True)


def _trial_url(artifacts_url: str, study_id: str, number: int) -> str:
    return f"{artifacts_url.rstrip('/')}/studies/{study_id}/trials/{number:05d}"


def _store(folder: str, target: str) -> str:
    """Write a whole folder, or nothing of it.

    In a directory it is written under another name and moved when complete, so that nobody finds half of it. A bucket
    cannot move; there nobody looks before the server was told of it.
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
        # A full disk is not filled further by what could not be finished.
        with suppress(OSError):
            files.rm(written, recursive=True)
        raise
    if in_directory:
        if files.exists(path):
            files.rm(path, recursive=True)
        files.mv(written, path, recursive=True)
    return target


def size_of(artifact: str) -> int:
    """Bytes of what lies at an artifact's URL."""
    files, path = fsspec.core.url_to_fs(artifact)
    return int(files.du(path))
