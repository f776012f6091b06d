"""Where trained adapters go: a directory, or whatever fsspec reaches."""

from __future__ import annotations

import tempfile
from pathlib import Path

import fsspec
from peft import PeftModel


def store_adapter(model: PeftModel, artifacts_url: str, study_id: str, number: int, attempt: int) -> str:
    """Save the adapter as PEFT does (safetensors) and put it under the artifacts URL; returns where it lies.

    It is written under another name and moved when complete, so a reader never finds half of one.
    """
    target = f"{artifacts_url.rstrip('/')}/studies/{study_id}/trials/{number:05d}/attempt-{attempt}/adapter"
    with tempfile.TemporaryDirectory(prefix="cdka-adapter-") as scratch:
        model.save_pretrained(scratch)
        # PEFT's model card is a form to fill in, not a description of this adapter.
        (Path(scratch) / "README.md").unlink(missing_ok=True)
        files, path = fsspec.core.url_to_fs(target)
        files.makedirs(files._parent(path), exist_ok=True)
        partial = f"{path}.partial"
        if files.exists(partial):
            files.rm(partial, recursive=True)
        files.put(f"{scratch}/", f"{partial}/", recursive=True)
        if files.exists(path):
            files.rm(path, recursive=True)
        files.mv(partial, path, recursive=True)
    return target


def size_of(artifact: str) -> int:
    """Bytes of what lies at an artifact's URL."""
    files, path = fsspec.core.url_to_fs(artifact)
    return int(files.du(path))
