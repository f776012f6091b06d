"""Faults of the data or the base model are not reported as divergence; layers without a gradient are found."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

import cdka
from tests.conftest import Api, sentences, write_lines
from workers.runner.runner import Runner
from workers.training.probe import layers_without_gradient, require_finite_loss

NUMBERS: dict[str, Any] = {
    "task": {
        "kind": "sequence_regression",
        "metric": "pearson",
        "columns": {"text": "text", "label": "size"},
    },
    "objectives": [{"metric": "pearson", "direction": "maximize"}],
}


def numbers(data_root: Path, name: str, *, at: int, value: float) -> dict[str, Any]:
    """A regression whose row ``at`` has a finite label whose square is infinite in fp32."""
    rows = [{"text": row["text"], "size": float(k % 3)} for k, row in enumerate(sentences(60))]
    rows[at - 1]["size"] = value
    write_lines(data_root / f"{name}.jsonl", rows)
    write_lines(data_root / f"{name}-rest.jsonl", [r for k, r in enumerate(rows) if k != at - 1])
    files = {"train": f"{name}.jsonl", "validation": f"{name}-rest.jsonl", "test": f"{name}-rest.jsonl"}
    return {**NUMBERS["task"], "dataset": {"path": "json", "data_files": files}}


def run(api: Api, runner: Runner, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    study = api.create(search={"trials": 3, "concurrency": 1}, **changes)
    lease = runner._next_lease()
    assert lease is not None
    runner.run_lease(lease)
    trials = api.call("GET", f"/studies/{study['id']}/trials").json()["items"]
    return api.call("GET", f"/studies/{study['id']}").json(), trials[0]


def test_a_loss_that_is_infinite_before_the_first_step_names_its_row(api: Api, runner: Runner, data_root: Path) -> None:
    task = numbers(data_root, "huge-first", at=3, value=1e30)
    study, trial = run(api, runner, task=task, objectives=NUMBERS["objectives"])
    assert (study["state"], trial["failure"]["kind"]) == ("failed", "rejected")
    assert "the untrained model's loss on row 3 of the train split is inf" in study["reason"]


def test_a_later_loss_that_is_infinite_without_the_adapter_too_fails_the_study(
    api: Api, runner: Runner, data_root: Path
) -> None:
    task = numbers(data_root, "huge-later", at=50, value=1e30)
    study, trial = run(api, runner, task=task, objectives=NUMBERS["objectives"])
    assert (study["state"], trial["failure"]["kind"]) == ("failed", "rejected")
    assert "without the adapter it is inf on the same batch" in study["reason"]
    assert "the data or the base model is to blame" in study["reason"]


def test_a_diverging_configuration_is_infeasible_and_the_study_continues(api: Api, runner: Runner) -> None:
    space = {"learning_rate": 1e30, "r1": 2, "r2": 4}
    study, trial = run(api, runner, search_space=space)
    assert trial["state"] == "infeasible"
    assert trial["failure"]["kind"] == "diverged"
    assert study["state"] == "running"


class Partly(nn.Module):
    """A model with a layer that its loss does not use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> Any:
        return self.dropout(self.used(x)).square().mean() + 0 * self.unused(x).detach().sum()


def trainer(model: nn.Module) -> Any:
    return SimpleNamespace(
        model=model,
        data_collator=torch.stack,
        _get_collator_with_removed_columns=lambda collator: collator,
        _prepare_inputs=lambda batch: {"x": batch},
        compute_loss_context_manager=nullcontext,
        accelerator=SimpleNamespace(autocast=nullcontext),
        compute_loss=lambda model, inputs: model(**inputs),
    )


def partly() -> Any:
    config = cdka.CdkaConfig(r1=2, r2=2, r=2, target_modules=["used", "unused"], init_weights=False)
    return get_peft_model(Partly(), config).train()


def test_layers_without_a_gradient_are_named_and_the_model_is_unchanged() -> None:
    model = partly()
    state = torch.random.get_rng_state()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert layers_without_gradient(trainer(model), torch.ones(8)) == ["unused"]  # type: ignore[arg-type]
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_non_finite_weight_is_named_without_pefts_prefix() -> None:
    from workers.failures import Rejected

    model = partly()
    with torch.no_grad():
        model.get_submodule("base_model.model.used.base_layer").weight[0, 0] = float("nan")
    with pytest.raises(Rejected, match="the model's weight used.weight has values that are not finite"):
        require_finite_loss(trainer(model), [torch.ones(8)], [1])  # type: ignore[list-item]
