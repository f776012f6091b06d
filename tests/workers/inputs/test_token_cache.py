"""The cache of tokenised data: entries are complete or rebuilt, size is limited, no other files remain."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import datasets
import pytest

from workers.inputs.token_cache import TokenisedCache, mapped


def numbers(count: int = 10) -> Any:
    return datasets.Dataset.from_dict({"n": list(range(count))})


def make(calls: list[int], count: int = 10) -> Any:
    def made(folder: Path) -> Any:
        calls.append(1)
        return mapped(numbers(count), lambda row: {"m": row["n"] + 1}, folder)

    return made


def test_tokenised_data_is_made_once_per_key(tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(3):
        found = TokenisedCache(tmp_path / "cache", 10**9).get({"a": 1}, make(calls))
        assert found["m"][:3] == [1, 2, 3]
    assert calls == [1]
    TokenisedCache(tmp_path / "cache", 10**9).get({"a": 2}, make(calls))
    assert calls == [1, 1]


@pytest.mark.parametrize("damage", ["half removed", "cut off"])
def test_a_damaged_cache_folder_is_rebuilt(tmp_path: Path, damage: str) -> None:
    calls: list[int] = []
    cache = TokenisedCache(tmp_path / "cache", 10**9)
    cache.get({}, make(calls))
    (folder,) = (tmp_path / "cache").iterdir()
    if damage == "half removed":
        (folder / "state.json").unlink()
    else:
        (folder / "dataset_info.json").write_text("{")
    assert cache.get({}, make(calls))["m"][0] == 1
    assert calls == [1, 1]


def test_the_cache_is_bounded_and_removes_incomplete_folders(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    cache = TokenisedCache(root, 1)
    left = root / ".partial-of-a-killed-runner"
    left.mkdir(parents=True)
    (left / "data").write_bytes(b"x" * 1000)
    fresh = root / ".partial-of-a-runner-that-works"
    fresh.mkdir()
    os.utime(left, (time.time() - 10**6,) * 2)
    for k in range(3):
        cache.get({"k": k}, make([]))
    assert sorted(f.name for f in root.iterdir() if f.name.startswith(".")) == [fresh.name]
    assert len([f for f in root.iterdir() if not f.name.startswith(".")]) == 1


def test_the_token_cache_leaves_no_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "data.jsonl"
    source.write_text('{"n": 1}\n{"n": 2}\n')
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    split = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(tmp_path / "hf"))
    before = sorted(p for p in (tmp_path / "hf").rglob("*.arrow"))
    cache = TokenisedCache(tmp_path / "cache", 10**9)
    for k in range(3):
        cache.get({"k": k}, lambda folder: mapped(split, lambda row: {"m": row["n"]}, folder))
    assert sorted(p for p in (tmp_path / "hf").rglob("*.arrow")) == before
    shutil.rmtree(tmp_path / "hf")
