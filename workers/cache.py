"""Tokenised data on disk: made once on a machine, mapped into memory by every runner there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import transformers

# Versions whose change may change what tokenising gives.
_VERSIONS = (transformers.__version__, tokenizers.__version__, datasets.__version__)


class TokenisedCache:
    """Folders of Arrow files under ``root``, named by everything that their content depends on.

    A folder appears complete or not at all. When all together hold more than ``most_bytes``, those that were used
    longest ago go. A file that is removed stays readable to the process that has it mapped.
    """

    def __init__(self, root: Path, most_bytes: int) -> None:
        self._root = root
        self._most_bytes = most_bytes

    def get(self, parts: dict[str, Any], make: Callable[[], Any]) -> Any:
        """The data set that ``make`` returns, made now or at an earlier time under the same ``parts``."""
        said = json.dumps([parts, _VERSIONS], sort_keys=True, default=str)
        folder = self._root / hashlib.sha256(said.encode()).hexdigest()[:40]
        if not folder.exists():
            self._root.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self._root))
            try:
                make().save_to_disk(str(partial / "data"))
                try:
                    os.rename(partial / "data", folder)
                except OSError:
                    # Another runner was first; its folder holds the same.
                    if not folder.exists():
                        raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        loaded = datasets.load_from_disk(str(folder))
        os.utime(folder)
        self._trim(folder)
        return loaded

    def _trim(self, kept: Path) -> None:
        folders = [f for f in self._root.iterdir() if f.is_dir() and not f.name.startswith(".")]
        sizes = {f: _size(f) for f in folders}
        total = sum(sizes.values())
        for folder in sorted(folders, key=_used_at):
            if total <= self._most_bytes:
                return
            if folder != kept:
                shutil.rmtree(folder, ignore_errors=True)
                total -= sizes[folder]


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
