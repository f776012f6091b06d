"""The adapter's configuration follows the trial."""

from __future__ import annotations

import pytest
from peft import get_peft_model
from transformers import BertConfig, BertModel

from service.schemas.specs import AdapterSpec, LayerShape
from workers.failures import Rejected
from workers.training.adapters import adapter_config, require_planned

LAYERS = [LayerShape(name="query", d_in=32, d_out=32)]
PARAMS = {"r1": 2, "r2": 4, "r": 3, "alpha": 16.0}


def test_cdka_starts_and_scales_as_the_study_says() -> None:
    spec = AdapterSpec(dropout=0.2, init_weights="orthogonal", scaling="rslora")
    config = adapter_config("cdka", PARAMS, LAYERS, spec, None).to_dict()
    assert (config["init_weights"], config["scaling"], config["dropout"]) == ("orthogonal", "rslora", 0.2)
    assert (config["r1"], config["r2"], config["r"], config["alpha"]) == (2, 4, 3, 16.0)


@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_lora_has_the_dropout_and_its_own_scale(method: str) -> None:
    config = adapter_config(method, PARAMS, LAYERS, AdapterSpec(dropout=0.2, scaling="constant"), None).to_dict()
    assert (config["lora_dropout"], config["r"], config["use_rslora"]) == (0.2, 3, method == "rslora")


def test_each_group_of_layers_gets_its_structure_and_the_planned_parameters() -> None:
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = BertModel(config)
    group_of = {"query": "attention", "value": "attention", "intermediate.dense": "mlp"}
    layers = [
        LayerShape(name=name, d_in=module.in_features, d_out=module.out_features, group=group)
        for name, module in model.named_modules()
        for end, group in group_of.items()
        if name.endswith(end)
    ]
    params = {
        "attention.r1": 1,
        "attention.r2": 4,
        "attention.r": 3,
        "mlp.r1": 2,
        "mlp.r2": 8,
        "mlp.r": 1,
        "alpha": 16.0,
    }
    adapted = get_peft_model(model, adapter_config("cdka", params, layers, AdapterSpec(), None))
    require_planned(adapted, "cdka", params, layers)
    query = adapted.get_submodule("base_model.model.encoder.layer.1.attention.self.query")
    dense = adapted.get_submodule("base_model.model.encoder.layer.0.intermediate.dense")
    assert tuple(query.cdka_A["default"].shape) == (3, 1, 8)
    assert tuple(dense.cdka_B["default"].shape) == (1, 32, 8)
    with pytest.raises(Rejected, match="the study planned"):
        require_planned(adapted, "cdka", {**params, "mlp.r": 2}, layers)
