"""Where trained adapters go: a directory, or whatever fsspec reaches."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import fsspec
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
    """Write under another name and move when complete, so that a reader never finds half of it."""
    files, path = fsspec.core.url_to_fs(target)
    files.makedirs(files._parent(path), exist_ok=True)
    partial = f"{path}.partial"
    try:
        if files.exists(partial):
            files.rm(partial, recursive=True)
        files.put(f"{folder.rstrip('/')}/", f"{partial}/", recursive=True)
    except OSError:
        # A full disk is not filled further by what could not be finished.
        with suppress(OSError):
            files.rm(partial, recursive=True)
        raise
    if files.exists(path):
        files.rm(path, recursive=True)
    files.mv(partial, path, recursive=True)
    return target


def size_of(artifact: str) -> int:
    """Bytes of what lies at an artifact's URL."""
    files, path = fsspec.core.url_to_fs(artifact)
    return int(files.du(path))
