"""Helpers of the suites of inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from service.schemas.specs import TaskSpec
from tests.conftest import Api, make_study
from workers.inputs.splits import Splits, load_splits
from workers.runner.runner import Runner

Weights = dict[str, torch.Tensor]
BUDGET = {"configuration": {"r1": 2, "r2": 2, "r": 2}, "min_fill": 0.5}


def task_of(kind: str, dataset: dict[str, Any], **options: Any) -> TaskSpec:
    if kind == "messages":
        kind, options = "causal_lm", {"columns": {"messages": "messages"}, **options}
    return TaskSpec.model_validate({"kind": kind, "dataset": dataset, **options})


def load(folder: Path, kind: str, files: dict[str, str], path: str = "json", **options: Any) -> Splits:
    source = {k: options.pop(k) for k in ("on_bad_row", "format", "sample", "seed", "streaming") if k in options}
    task = task_of(kind, {"path": path, "data_files": files, **source}, **options)
    return load_splits(task, [folder], folder / "scratch")


def run(api: Api, runner: Runner, path: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Create a study on a model and run one trial; returns the study and the trial."""
    study = api.create(
        model={"path": path},
        budget=BUDGET,
        search_space={"r1": 2, "r2": 2, "learning_rate": 1e-3},
        search={"trials": 1},
        training={"epochs": 1},
        **changes,
    )
    lease = runner._next_lease()
    assert lease is not None
    runner.run_lease(lease)
    return study, api.call("GET", f"/trials/{lease.trial.id}").json()


def classes(trial: dict[str, Any]) -> list[str]:
    return json.loads((Path(trial["artifact"]) / "cdka_task.json").read_text())["classes"]  # type: ignore[no-any-return]


def refusal(api: Api, runner: Runner, path: str, **changes: Any) -> str:
    """The reason why a study on a model is rejected, at submit or by its first trial. There is only one attempt."""
    answer = api.call("POST", "/studies", json=make_study(model={"path": path}, **changes))
    if answer.status_code == 422:
        return " ".join(e["detail"] for e in answer.json()["errors"])
    assert answer.status_code == 201, answer.text
    lease = runner._next_lease()
    assert lease is not None
    runner.run_lease(lease)
    study = api.call("GET", f"/studies/{answer.json()['id']}").json()
    assert study["state"] == "failed", study
    assert study["inputs"] is None
    (trial,) = api.call("GET", f"/studies/{study['id']}/trials").json()["items"]
    assert (trial["failure"]["kind"], trial["attempts"]) == ("rejected", 1)
    assert runner._next_lease() is None
    return str(study["reason"])


def change_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
