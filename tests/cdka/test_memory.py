"""The memory of a training step: estimated from shapes, against what a real step on this CPU takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from transformers import LlamaConfig

import cdka

# A process of its own, so that nothing else allocates.
STEP = """
import json, sys
import torch
from peft import get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig
import cdka

torch.set_num_threads(1)
options = json.loads(sys.argv[1])
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
print(peak)
"""
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
    given = {"target_modules": "all-linear", "batch_size": 4, "length": 256, **options}
    return cdka.estimate_memory(config, "causal_lm", sizes, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_estimates_are_what_a_step_takes(precision: str, gradient_checkpointing: bool) -> None:
    options = {"precision": precision, "gradient_checkpointing": gradient_checkpointing}
    found = estimate(LlamaConfig(**CONFIG), **options)
    given = json.dumps({"config": CONFIG, "batch_size": 4, "length": 256, **options})
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STEP, given], capture_output=True, text=True, check=True
    )
    assert found.activations == pytest.approx(int(said.stdout), rel=0.05)


def test_depth_is_extended_from_two_shallow_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(**CONFIG)
    extended = estimate(config).activations
    monkeypatch.setattr("cdka.memory._DEEP", 100)
    assert extended == pytest.approx(estimate(config).activations, rel=0.01)


def test_weights_and_states_are_counted_from_shapes() -> None:
    config = LlamaConfig(**CONFIG)
    full = cdka.meta_model(config, "causal_lm")
    numbers = sum(p.numel() for p in full.parameters())
    shapes = cdka.module_shapes(config, "all-linear", "causal_lm")
    adapted = sum(s.d_in * s.d_out for s in shapes)
    assert estimate(config).weights == 4 * numbers
    assert estimate(LlamaConfig(**CONFIG, dtype="bfloat16"), precision="bf16").weights == 2 * numbers
    assert estimate(LlamaConfig(**CONFIG, dtype="bfloat16")).weights == 4 * numbers
    assert estimate(config, quantization="4bit").weights == pytest.approx(4 * (numbers - adapted) + adapted * 0.5625)
    trained = cdka.count_parameters(shapes, 2, 4, 6)
    assert estimate(config).training == 16 * trained  # weight, gradient, two moments
    assert estimate(config, optimizer="sgd").training == 12 * trained
    assert estimate(config, gradient_checkpointing=True).activations < estimate(config).activations
