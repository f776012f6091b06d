"""The demo uses the data of the pinned packages and rejects changed data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.cli import demo
from service.errors import InvalidRequest

SMALL = demo.Sizes(train=6, validation=3, test=3)


def test_the_demo_lays_out_the_data_of_the_pinned_packages(tmp_path: Path) -> None:
    demo.prepare_data(tmp_path, SMALL)
    assert (tmp_path / demo.MODEL_NAME / "model.safetensors").stat().st_size > 10**7
    lines = [len((tmp_path / f"{s}.jsonl").read_text().splitlines()) for s in ("train", "validation", "test")]
    assert lines == [6, 3, 3]


@pytest.mark.parametrize("package", [demo.MODEL_PACKAGE, demo.NEWS_PACKAGE])
def test_changed_data_is_rejected_with_the_command_that_restores_it(
    tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = demo.package_folder
    copied = tmp_path / package
    shutil.copytree(original(package), copied)
    file = copied / "model/vocab.txt" if package == demo.MODEL_PACKAGE else next(copied.glob("bbcnews/data/*/*.txt"))
    file.write_bytes(file.read_bytes() + b"x")
    monkeypatch.setattr(demo, "package_folder", lambda name: copied if name == package else original(name))
    with pytest.raises(InvalidRequest, match="reinstall the pinned version"):
        demo.prepare_data(tmp_path / "data", SMALL)
