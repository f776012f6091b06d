"""Inputs are identified by content: changes are noticed even if path, size and time stay the same."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import cdka
from tests.conftest import Api, sentences, write_lines
from workers.runner.runner import Runner


def step(runner: Runner) -> None:
    lease = runner._next_lease()
    assert lease is not None
    runner.run_lease(lease)


def read(api: Api, study: dict[str, Any]) -> dict[str, Any]:
    return api.call("GET", f"/studies/{study['id']}").json()  # type: ignore[no-any-return]


def one_trial(api: Api, runner: Runner, study: dict[str, Any]) -> dict[str, Any]:
    step(runner)
    return api.call("GET", f"/studies/{study['id']}/trials").json()["items"][-1]  # type: ignore[no-any-return]


def swapped(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same texts with swapped labels, in the same number of bytes."""
    other = {"sport": "business", "business": "sport"}
    return [{**row, "label": other[row["label"]]} for row in rows]


def replace(file: Path, content: bytes) -> None:
    """Write other content of the same length, and keep the modification time to the nanosecond."""
    before = file.stat()
    assert len(content) == before.st_size
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def packed(rows: list[dict[str, str]]) -> bytes:
    """A gzip file without compression, so that its length does not depend on the order of words."""
    return gzip.compress(lines(rows), compresslevel=0, mtime=0)


def test_a_study_records_its_data_classes_model_and_tokenizer(api: Api, runner: Runner, data_root: Path) -> None:
    study = api.create(search={"trials": 1})
    step(runner)
    inputs = read(api, study)["inputs"]
    content = (data_root / "train.jsonl").read_bytes()
    train = inputs["splits"]["train"]
    assert (train["read"], train["dropped"], train["used"]) == (40, 0, 40)
    assert train["files"] == [
        {"name": "train.jsonl", "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    ]
    assert inputs["classes"] == ["business", "sport"]
    assert inputs["model_sha256"] == cdka.weights_digest(data_root / "tiny-bert")
    assert len(inputs["tokenizer_sha256"]) == 64


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_file_replaced_under_the_same_path_size_and_time_is_read_anew(
    api: Api, runner: Runner, data_root: Path, suffix: str
) -> None:
    write = packed if suffix.endswith("gz") else lines
    file = data_root / f"replaced.{suffix}"
    file.write_bytes(write(sentences(60)))
    data = {"dataset": {"path": "json", "data_files": {"train": file.name}}}
    # The second study must be trained on the new labels.
    first = api.create(task=data, search={"trials": 1}, training={"epochs": 1})
    step(runner)
    replace(file, write(swapped(sentences(60))))
    second = api.create(task=data, search={"trials": 1}, training={"epochs": 1})
    step(runner)
    before, after = read(api, first)["inputs"], read(api, second)["inputs"]
    assert before["splits"]["train"]["files"][0]["sha256"] != after["splits"]["train"]["files"][0]["sha256"]
    assert runner._warm.splits is not None
    labels = {row["text"]: row["label"] for row in swapped(sentences(60))}
    assert all(labels[row["text"]] == row["label"] for row in runner._warm.splits.train)


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_a_file_that_changes_during_a_study_fails_the_study(
    api: Api, runner: Runner, data_root: Path, cold: bool
) -> None:
    file = data_root / f"changing-{cold}.jsonl"
    write_lines(file, sentences(60))
    data = {"dataset": {"path": "json", "data_files": {"train": file.name}}}
    study = api.create(task=data, search={"trials": 3, "concurrency": 1}, training={"epochs": 1})
    step(runner)
    replace(file, lines(swapped(sentences(60))))
    step(Runner(runner.client, runner.settings, "another") if cold else runner)
    found = read(api, study)
    assert found["state"] == "failed"
    assert "data or base model have changed since the study began" in found["reason"]
    assert f"{file.name} has SHA-256 " in found["reason"]
    assert [t["state"] for t in api.call("GET", f"/studies/{study['id']}/trials").json()["items"]] == [
        "completed",
        "failed",
    ]


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_a_base_model_that_changes_during_a_study_fails_the_study(
    api: Api, runner: Runner, data_root: Path, cold: bool
) -> None:
    folder = data_root / f"changing-bert-{cold}"
    shutil.copytree(data_root / "tiny-bert", folder)
    study = api.create(model={"path": folder.name}, search={"trials": 3, "concurrency": 1}, training={"epochs": 1})
    step(runner)
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    step(Runner(runner.client, runner.settings, "another") if cold else runner)
    found = read(api, study)
    assert found["state"] == "failed"
    assert "the base model's weights have SHA-256" in found["reason"]


def test_a_touched_but_unchanged_file_does_not_stop_the_study(api: Api, runner: Runner, data_root: Path) -> None:
    file = data_root / "touched.jsonl"
    write_lines(file, sentences(60))
    data = {"dataset": {"path": "json", "data_files": {"train": file.name}}}
    study = api.create(task=data, search={"trials": 2, "concurrency": 1}, training={"epochs": 1})
    step(runner)
    os.utime(file)
    step(runner)
    assert read(api, study)["state"] == "completed"


def test_a_removed_file_fails_the_study_and_is_named(api: Api, runner: Runner, data_root: Path) -> None:
    file = data_root / "gone.jsonl"
    write_lines(file, sentences(60))
    data = {"dataset": {"path": "json", "data_files": {"train": file.name}}}
    study = api.create(task=data, search={"trials": 2, "concurrency": 1}, training={"epochs": 1})
    step(runner)
    file.unlink()
    step(runner)
    found = read(api, study)
    assert found["state"] == "failed"
    assert "gone.jsonl" in found["reason"]
