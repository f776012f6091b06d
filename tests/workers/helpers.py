"""Helpers that run trials of tiny models, shared by several suites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from service.db.trials import Trials
from tests.conftest import Api, make_study
from workers.runner.runner import Runner

# Five steps per epoch, so that interruptions come in the middle of an epoch.
LONG = {"epochs": 3, "checkpoint_steps": 4}
SPACE = {"learning_rate": 5e-3, "r1": 2, "r2": {"choices": [4]}}
DIGITS = "zero one two three four five six seven eight nine".split()
WORDS = ["<pad>", "</s>", "<unk>", *DIGITS, *"0123456789", *"plus is ? even odd user assistant : ####".split()]


def run(runner: Runner) -> None:
    lease = runner._next_lease()
    assert lease is not None
    runner.run_lease(lease)


def only_trial(api: Api, study: dict[str, Any]) -> dict[str, Any]:
    (trial,) = api.call("GET", f"/studies/{study['id']}/trials").json()["items"]
    return trial  # type: ignore[no-any-return]


def checkpoint_of(api: Api, study: dict[str, Any]) -> str | None:
    with api.ctx.db.read() as session:
        return Trials(session).get(only_trial(api, study)["id"]).checkpoint


def release_at(runner: Runner, step: int) -> None:
    """Make the runner return its trial at ``step``, as after a preemption notice."""
    original = runner.train_trial

    def training(trial: Any, task: Any, model: Any, prepared: Any, reports: Any, *rest: Any) -> Any:
        progress = reports.progress

        def at(reached: int, total: int) -> None:
            progress(reached, total)
            if reached == step:
                runner.release()

        reports.progress = at
        return original(trial, task, model, prepared, reports, *rest)

    runner.train_trial = training


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({w: k for k, w in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special.pop("ends", None):
        made.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **special
    )


def run_one(api: Api, runner: Runner, model: str, task: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Create a study of one trial, run it, and return the completed trial."""
    task = {"dataset": {"path": "json", "data_files": {"train": "sums.jsonl"}}, **task}
    sections: dict[str, Any] = {
        "model": {"path": model},
        "budget": {"configuration": {"r1": 2, "r2": 2, "r": 4}},
        "search": {"trials": 1},
        "search_space": {"r1": 2, "r2": {"choices": [2]}, "learning_rate": 2e-2},
        "training": {"epochs": 2, "batch_size": 8, "max_length": 32},
    }
    for name, value in changes.items():
        sections[name] = {**sections.get(name, {}), **value} if isinstance(value, dict) else value
    body = {**make_study(**sections), "task": task}
    created = api.call("POST", "/studies", json=body)
    assert created.status_code == 201, created.text
    lease = runner._next_lease()
    assert lease is not None
    runner.run_lease(lease)
    (trial,) = api.call("GET", f"/studies/{created.json()['id']}/trials").json()["items"]
    assert trial["state"] == "completed", trial["failure"]
    return trial  # type: ignore[no-any-return]


def weights(artifact: str) -> dict[str, torch.Tensor]:
    return load_file(Path(artifact) / "adapter_model.safetensors")
