"""The memory of a training step, estimated from shapes and compared with a real step on this CPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from transformers import LlamaConfig

import cdka

# A separate process, so that nothing else allocates. One process for all cases, because its imports are slow.
STEPS = """
import json, sys
import torch
from peft import get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig
import cdka

torch.set_num_threads(1)

def peak_of(options):
    model = AutoModelForCausalLM.from_config(LlamaConfig(**options["config"]))
    if options["gradient_checkpointing"]:
        model.activation_checkpointing_enable({"use_reentrant": False})
    adapted = get_peft_model(model, cdka.CdkaConfig(r1=2, r2=4, r=6, target_modules="all-linear")).train()

    def step(batch, length):
        ids = torch.zeros(batch, length, dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16, enabled=options["precision"] == "bf16"):
            loss = adapted(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids)).loss
        loss.backward()

    step(1, 8)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step(options["batch_size"], options["length"])
    held = peak = 0
    # What the allocator gave and took back, in order.
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak

print(json.dumps([peak_of(options) for options in json.loads(sys.argv[1])]))
"""
CASES = [
    {"precision": precision, "gradient_checkpointing": gradient_checkpointing}
    for precision in ("fp32", "bf16")
    for gradient_checkpointing in (False, True)
]
SMALL = {
    "vocab_size": 2000,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
CONFIG = {
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}


def estimate(config: LlamaConfig, **options: object) -> cdka.MemoryEstimate:
    shapes = cdka.module_shapes(config, "all-linear", "causal_lm")
    sizes = cdka.Configuration(2, 4, 6, cdka.count_parameters(shapes, 2, 4, 6))
    step = cdka.TrainingStep(**{"batch_size": 4, "length": 256, **options})  # type: ignore[arg-type]
    return cdka.estimate_memory(config, "causal_lm", sizes, step, target_modules="all-linear")


@pytest.mark.parametrize(
    ("config", "batch_size", "length"),
    [
        pytest.param(SMALL, 4, 128, id="small"),
        pytest.param(CONFIG, 4, 256, id="large", marks=pytest.mark.slow),
    ],
)
def test_estimates_are_within_5_percent_of_a_real_step(config: dict[str, int], batch_size: int, length: int) -> None:
    """In fp32 and bf16, with and without gradient checkpointing: within 5 % of the allocator's own peak."""
    sizes = {"batch_size": batch_size, "length": length}
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STEPS, json.dumps([{"config": config, **sizes, **c} for c in CASES])],
        capture_output=True,
        text=True,
        check=True,
    )
    for case, peak in zip(CASES, json.loads(said.stdout), strict=True):
        found = estimate(LlamaConfig(**config), **sizes, **case)
        assert found.activations == pytest.approx(peak, rel=0.05), case


def test_deep_models_are_extrapolated_from_two_shallow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(**CONFIG)
    extended = estimate(config).activations
    monkeypatch.setattr("cdka.memory._DEEP", 100)
    assert extended == pytest.approx(estimate(config).activations, rel=0.01)


def test_weights_and_states_are_counted_from_shapes() -> None:
    config = LlamaConfig(**SMALL)
    full = cdka.meta_model(config, "causal_lm")
    numbers = sum(p.numel() for p in full.parameters())
    shapes = cdka.module_shapes(config, "all-linear", "causal_lm")
    adapted = sum(s.d_in * s.d_out for s in shapes)
    found = estimate(config)
    assert found.weights == 4 * numbers
    assert estimate(LlamaConfig(**SMALL, dtype="bfloat16"), precision="bf16").weights == 2 * numbers
    assert estimate(LlamaConfig(**SMALL, dtype="bfloat16")).weights == 4 * numbers
    assert estimate(config, quantization="4bit").weights == pytest.approx(4 * (numbers - adapted) + adapted * 0.5625)
    trained = cdka.count_parameters(shapes, 2, 4, 6)
    assert found.training == 16 * trained  # weight, gradient, two moments
    assert estimate(config, optimizer="sgd").training == 12 * trained
    assert estimate(config, gradient_checkpointing=True).activations < found.activations
