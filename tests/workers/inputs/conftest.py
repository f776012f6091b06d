"""Fixtures of the suites of inputs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def copied(data_root: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of tiny-bert in the data folder, which the test may change or damage."""
    folder = data_root / f"copy-{tmp_path.name}"
    shutil.copytree(data_root / "tiny-bert", folder)
    yield folder
    shutil.rmtree(folder)
