"""Outputs of frozen lower layers are computed once and cached, without changing the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, OPTConfig, OPTForCausalLM

from tests.conftest import Api
from workers.runner.runner import Runner
from workers.training.activation_cache import FrozenLayers, find_frozen_layers

from ..helpers import run_one

UPPER = ["layers.1.self_attn.q_proj", "layers.1.mlp.up_proj"]
TASK = {
    "kind": "causal_lm",
    "metric": "loss",
    "columns": {"prompt": "prompt", "completion": "completion"},
}


pytestmark = pytest.mark.usefixtures("zoo")


def weights(trial: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(Path(trial["artifact"]) / "adapter_model.safetensors")


def test_cached_activations_do_not_change_the_training(api: Api, runner: Runner) -> None:
    plain = runner.settings.model_copy(update={"activation_bytes": 0})
    options = {"adapter": {"target_modules": UPPER}, "training": {"epochs": 4}}
    without = run_one(api, Runner(runner.client, plain, "plain"), "tiny-llama", TASK, **options)
    assert "frozen_layers" not in without["resources"]
    calls = {"training": 0}
    original = runner.train_trial

    def training(trial: Any, task: Any, model: Any, *rest: Any) -> Any:
        layer = model.get_base_model().model.layers[0]
        inner = getattr(layer, "_layer", layer)
        handle = inner.register_forward_hook(
            lambda module, *_: calls.update(training=calls["training"] + module.training)
        )
        try:
            return original(trial, task, model, *rest)
        finally:
            handle.remove()

    runner.train_trial = training
    found = run_one(api, runner, "tiny-llama", TASK, **options)
    assert found["resources"]["frozen_layers"] == 1
    assert calls["training"] == 0
    assert found["metrics"]["loss"] == pytest.approx(without["metrics"]["loss"], rel=1e-5)
    ours, theirs = weights(found), weights(without)
    assert all(torch.allclose(ours[k], theirs[k], atol=1e-4) for k in theirs)
    # A fresh runner and a warm one give the same weights, bit for bit.
    fresh = run_one(api, Runner(runner.client, runner.settings, "fresh"), "tiny-llama", TASK, **options)
    warm = run_one(api, runner, "tiny-llama", TASK, **options)
    for other in (fresh, warm):
        assert all(torch.equal(ours[k], weights(other)[k]) for k in ours)
    assert not list((runner.settings.home / "cache").glob("prefix-*")), "the file has no name to be left behind"


@pytest.mark.parametrize(
    ("targets", "options"),
    [("all-linear", {}), (UPPER, {"packing": True}), (UPPER, {"gradient_checkpointing": True})],
)
def test_nothing_is_cached_with_all_layers_adapted_packing_or_checkpointing(
    api: Api, runner: Runner, targets: Any, options: Any
) -> None:
    trial = run_one(
        api, runner, "tiny-llama", TASK, adapter={"target_modules": targets}, training={"epochs": 2, **options}
    )
    assert trial["state"] == "completed"
    assert "frozen_layers" not in trial["resources"]


def test_layers_that_are_random_in_training_are_not_cached(zoo: Path) -> None:
    bert = AutoModelForSequenceClassification.from_pretrained(zoo / "tiny-bert")
    assert find_frozen_layers(bert, ["bert.encoder.layer.1.attention.self.query"]) is None  # dropout
    llama = AutoModelForCausalLM.from_pretrained(zoo / "tiny-llama")
    assert find_frozen_layers(llama, ["model.layers.1.mlp.up_proj"]) == FrozenLayers("model.layers", 1)
    assert find_frozen_layers(llama, ["model.layers.0.mlp.up_proj"]) is None
    assert find_frozen_layers(llama, ["model.layers.1.mlp.up_proj", "lm_head"]) is None

    torch.manual_seed(0)
    config = OPTConfig(vocab_size=20, hidden_size=32, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2)
    layer = ["model.decoder.layers.1.fc1"]
    assert find_frozen_layers(OPTForCausalLM(config), layer) is None  # it uses dropout without a module
    config.dropout = 0.0
    assert find_frozen_layers(OPTForCausalLM(config), layer) == FrozenLayers("model.decoder.layers", 1)
