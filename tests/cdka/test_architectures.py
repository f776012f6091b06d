"""Counts from a config equal those of the instantiated adapter, for the architectures that are fine-tuned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForImageClassification, Qwen2Config, ViTConfig

import cdka
from tests.peft_suite.models import CAUSAL, GQA, MODELS

KINDS = {
    "AutoModelForCausalLM": "causal_lm",
    "AutoModelForSeq2SeqLM": "seq2seq_lm",
    "AutoModelForSequenceClassification": "sequence_classification",
    "AutoModelForImageClassification": "image_classification",
    "AutoModel": None,
}
CASES = MODELS | {
    "ViT": (
        AutoModelForImageClassification,
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=16,
            patch_size=8,
        ),
    ),
    "Qwen2 with tied embeddings": (CAUSAL, Qwen2Config(**GQA, tie_word_embeddings=True)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("structure", [(1, 1, 3), (2, 8, 4), (4, 2, 1)])
def test_counts_are_exact(name: str, structure: tuple[int, int, int]) -> None:
    auto, config = CASES[name]
    kind = KINDS[auto.__name__]
    shapes = cdka.module_shapes(config, "all-linear", kind)
    task: Any = {"sequence_classification": "SEQ_CLS", "causal_lm": "CAUSAL_LM", "seq2seq_lm": "SEQ_2_SEQ_LM"}
    r1, r2, r = structure
    arguments: Any = {"target_modules": "all-linear", "task_type": task.get(kind)}
    if kind == "image_classification":
        arguments["exclude_modules"] = ["classifier"]
    with torch.device("meta"):
        model = auto.from_config(config)
        adapted = get_peft_model(model, cdka.CdkaConfig(r1=r1, r2=r2, r=r, **arguments))
    counted = sum(p.numel() for n, p in adapted.named_parameters() if "cdka_" in n)
    assert counted > 0
    assert cdka.count_parameters(shapes, r1, r2, r) == counted
