"""The contract of tasks, for each built-in task on a tiny model of its architecture."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from service.domain.metrics import METRICS
from service.domain.study_spec import StudySpec
from service.domain.task_spec import TaskKind
from tests.conftest import make_study, write_lines
from workers.inputs.splits import load_splits
from workers.inputs.token_cache import TokenisedCache
from workers.tasks import TASKS

pytestmark = pytest.mark.usefixtures("zoo")
TEXTS = {"text": "prompt", "label": "parity"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    TaskKind.SEQUENCE_CLASSIFICATION: ("tiny-bert", {"columns": TEXTS}),
    TaskKind.SEQUENCE_REGRESSION: ("tiny-bert", {"columns": {"text": "prompt", "label": "size"}, "metric": "mse"}),
    TaskKind.CAUSAL_LM: ("tiny-llama", {"columns": {"prompt": "prompt", "completion": "completion"}, "metric": "loss"}),
    TaskKind.SEQ2SEQ_LM: ("tiny-t5", {"columns": {"text": "prompt", "target": "completion"}, "metric": "loss"}),
    TaskKind.IMAGE_CLASSIFICATION: (
        "tiny-vit",
        {"dataset": {"path": "json", "data_files": {"train": "squares.jsonl"}}, "metric": "accuracy"},
    ),
}


def test_every_built_in_task_has_a_case() -> None:
    assert set(CASES) == set(TASKS)


@pytest.mark.parametrize("kind", sorted(CASES))
def test_a_task_prepares_loads_and_judges(kind: str, zoo: Path, tmp_path: Path) -> None:
    path, changes = CASES[kind]
    rows = [{"image": [[40.0 * (k % 2)] * 8] * 8, "label": k % 2} for k in range(30)]
    write_lines(zoo / "squares.jsonl", rows)
    section = {"kind": kind, "dataset": {"path": "json", "data_files": {"train": "sums.jsonl"}}, **changes}
    study = StudySpec.model_validate({**make_study(model={"path": path}), "task": section})
    task, splits = TASKS[kind], load_splits(study.task, [zoo], tmp_path)
    prepared = task.prepare(study, str(zoo / path), splits, TokenisedCache(tmp_path / "cache", 2**30))
    warm = task.load_model(study, str(zoo / path), prepared)

    # Splits are as long as the data, unless the task says what it left out; a batch of them gives a finite loss.
    assert len(prepared.validation) == len(splits.validation) or "left out" in prepared.origins["validation"]
    assert set(prepared.origins) == {"train", "validation", "test"}
    # The Trainer hands the collator the columns that the model's forward pass takes.
    taken = inspect.signature(warm.model.forward).parameters
    batch = prepared.collator([{k: v for k, v in prepared.train[n].items() if k in taken} for n in range(4)])
    known = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}
    assert "labels" in known
    assert torch.isfinite(warm.model(**known).loss)

    # Judging is repeatable, gives the task's metric, and only metrics that the server knows.
    warm.model.eval()
    wanted = study.metrics_wanted
    with torch.no_grad():
        first, second = (task.judge(study, warm.model, prepared.validation, prepared, wanted) for _ in range(2))
    assert first.metrics == second.metrics
    assert wanted <= first.metrics.keys() <= METRICS[kind].keys()
    assert all(isinstance(value, float) for value in first.metrics.values())
    if first.per_example is not None:
        assert len(first.per_example) == len(prepared.validation)
        mean = sum(first.per_example) / len(first.per_example)
        assert mean == pytest.approx(first.metrics[study.objective.metric], abs=1e-6)
