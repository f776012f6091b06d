"""Splits are read from the files that a study names."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.schemas.specs import TaskSpec
from tests.conftest import write_lines
from workers.inputs.splits import load_splits


@pytest.mark.parametrize("name", ["part-[1].jsonl", "train [v1].jsonl", "a*b?.jsonl", "part-1.jsonl"])
@pytest.mark.parametrize("streaming", [False, True])
def test_glob_characters_in_a_file_name_are_taken_literally(tmp_path: Path, name: str, streaming: bool) -> None:
    for other in ("part-1.jsonl", "aXbY.jsonl", "train v.jsonl"):
        write_lines(tmp_path / other, [{"text": other, "label": k % 2} for k in range(20)])
    write_lines(tmp_path / name, [{"text": "this one", "label": k % 2} for k in range(20)])
    task = TaskSpec.model_validate(
        {
            "kind": "sequence_classification",
            "dataset": {
                "path": "json",
                "data_files": {"train": name},
                "streaming": streaming,
                "sample": {"train": 20} if streaming else None,
            },
        }
    )
    splits = load_splits(task, [tmp_path], tmp_path / "scratch")
    assert {*splits.train["text"], *splits.validation["text"], *splits.test["text"]} == {"this one"}
