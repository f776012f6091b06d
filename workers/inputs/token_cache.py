"""Tokenised data on disk: made once per machine, mapped into memory by every runner there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import transformers

_PARTIAL = ".partial-"
# Incomplete folders of killed runners are removed after a day.
ABANDONED_SECONDS = 86_400.0
# Libraries whose versions may change the tokens.
_VERSIONS = (transformers.__version__, tokenizers.__version__, datasets.__version__)


class TokenisedCache:
    """Folders of Arrow files under ``root``, named by everything that their content depends on.

    A folder appears complete or not at all. When all folders exceed ``most_bytes``, the least recently used are
    removed. A process that has mapped a removed file can still read it.
    """

    def __init__(self, root: Path, most_bytes: int) -> None:
        self._root = root
        self._most_bytes = most_bytes

    def get(self, parts: dict[str, Any], make: Callable[[Path], Any]) -> Any:
        """The dataset that ``make`` returns for these ``parts``, made now or taken from the cache.

        ``make`` gets a folder for temporary files, which is removed afterwards.
        """
        said = json.dumps([parts, _VERSIONS], sort_keys=True, default=str)
        folder = self._root / hashlib.sha256(said.encode()).hexdigest()[:40]
        for last in (False, True):
            if not folder.exists():
                self._make(folder, make)
            try:
                loaded = datasets.load_from_disk(str(folder))
                os.utime(folder)
                break
            except (OSError, ValueError):
                # Damaged, or just removed by another runner to free space: make it again.
                if last:
                    raise
                self._drop(folder)
        self._trim(folder)
        return loaded

    def _make(self, folder: Path, make: Callable[[Path], Any]) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self._root))
        try:
            make(partial).save_to_disk(str(partial / "data"))
            try:
                os.rename(partial / "data", folder)
            except OSError:
                # Another runner stored the same content first.
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _drop(self, folder: Path) -> None:
        """Remove a folder by renaming it first, so that a crash leaves no folder that looks complete."""
        gone = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self._root))
        with contextlib.suppress(OSError):
            os.rename(folder, gone / "data")
        shutil.rmtree(gone, ignore_errors=True)

    def _trim(self, kept: Path) -> None:
        for left in self._root.glob(f"{_PARTIAL}*"):
            if time.time() - _used_at(left) > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        folders = [f for f in self._root.iterdir() if f.is_dir() and not f.name.startswith(".")]
        sizes = {f: _size(f) for f in folders}
        total = sum(sizes.values())
        for folder in sorted(folders, key=_used_at):
            if total <= self._most_bytes:
                return
            if folder != kept:
                self._drop(folder)
                total -= sizes[folder]


def mapped(split: Any, encode: Callable[..., Any], folder: Path, name: str = "mapped", **options: Any) -> Any:
    """``split.map`` that replaces all columns and writes only to ``folder``."""
    return split.map(
        encode,
        remove_columns=split.column_names,
        load_from_cache_file=False,
        cache_file_name=str(folder / f"{name}.arrow"),
        **options,
    )


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:
        return 0


def _used_at(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
