"""The adapter's configuration follows the trial."""

from __future__ import annotations

import pytest

from service.schemas.specs import AdapterSpec, LayerShape
from workers.training.adapters import adapter_config

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
