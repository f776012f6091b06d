"""Base models from different kinds of checkpoints: with heads, without poolers, in 16 bits, with running statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    MobileViTConfig,
    MobileViTForImageClassification,
)

import cdka
from service.schemas.specs import AdapterSpec, StudySpec
from tests.conftest import make_study
from workers.failures import Rejected
from workers.inputs.base_models import WarmModel, load_warm, new_modules
from workers.training.adapters import adapter_config

TINY = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PARAMS = {"r1": 2, "r2": 2, "r": 2, "alpha": 16.0}


def study(**training: Any) -> StudySpec:
    return StudySpec.model_validate(make_study(training=training))


def lend(warm: WarmModel, seed: int = 0) -> Any:
    heads = {*warm.heads, *warm.new_modules, "classifier"}
    layers = cdka.module_shapes(warm.model, ["query"], heads=heads)
    return warm.lend(adapter_config("cdka", PARAMS, layers, AdapterSpec(), None, heads), seed)


def load(path: Path, labels: int = 3, **training: Any) -> WarmModel:
    return load_warm(AutoModelForSequenceClassification, str(path), study(**training), num_labels=labels)


def train(model: Any, steps: int = 3) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        ids = torch.arange(8)[None]
        model(input_ids=ids, labels=torch.tensor([1])).loss.backward()
        optimizer.step()


def test_a_missing_pooler_is_trained_and_saved_and_the_backbone_stays_pretrained(tmp_path: Path) -> None:
    pretrained = BertForMaskedLM(BertConfig(**TINY))
    pretrained.save_pretrained(tmp_path)
    warm = load(tmp_path)
    assert set(warm.new_modules) == {"bert.pooler", "classifier"}
    words = pretrained.bert.embeddings.word_embeddings.weight
    lent = lend(warm)
    assert torch.equal(warm.model.bert.embeddings.word_embeddings.weight, words)
    assert any("pooler" in n and p.requires_grad for n, p in lent.named_parameters())
    lent.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    from safetensors.torch import load_file

    assert any("pooler" in key for key in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    train(lent)
    warm.take_back(lent)


@pytest.mark.parametrize("labels", [3, 5])
def test_a_checkpoint_with_a_head_can_be_lent_repeatedly(tmp_path: Path, labels: int) -> None:
    """With three classes each trial starts from the checkpoint's head. With five the head is initialised anew."""
    BertForSequenceClassification(BertConfig(**TINY, num_labels=3)).save_pretrained(tmp_path)
    warm = load(tmp_path, labels)
    assert warm.new_modules == (() if labels == 3 else ("classifier",))
    before = warm.model.classifier.weight.clone()
    for _ in range(2):
        lent = lend(warm)
        train(lent)
        warm.take_back(lent)
        if labels == 3:
            assert torch.equal(warm.model.classifier.weight, before)
    assert warm.model.classifier.weight.shape == (labels, 32)


def test_a_checkpoint_that_lacks_part_of_a_module_is_rejected() -> None:
    model = BertForSequenceClassification(BertConfig(**TINY))
    with pytest.raises(Rejected, match=r"lack 1 of its weights \(bert.pooler.dense.bias"):
        new_modules(model, {"bert.pooler.dense.bias", "classifier.weight", "classifier.bias"})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_trained_parameters_are_fp32(tmp_path: Path, precision: str) -> None:
    BertForSequenceClassification(BertConfig(**TINY)).to(torch.bfloat16).save_pretrained(tmp_path)
    warm = load(tmp_path, precision=precision)
    lent = lend(warm)
    assert {p.dtype for p in lent.parameters() if p.requires_grad} == {torch.float32}
    frozen = {p.dtype for p in lent.parameters() if not p.requires_grad}
    assert frozen == {torch.float32 if precision == "fp32" else torch.bfloat16}


def test_running_statistics_are_restored_after_a_trial(tmp_path: Path) -> None:
    config = MobileViTConfig(
        image_size=32, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 16], num_labels=2
    )
    MobileViTForImageClassification(config).save_pretrained(tmp_path)
    warm = load_warm(AutoModelForImageClassification, str(tmp_path), study(), num_labels=2)
    before = {n: b.clone() for n, b in warm.model.named_buffers()}
    lent = lend(warm)
    lent.train()
    lent(pixel_values=torch.randn(2, 3, 32, 32))
    changed = [n for n, b in warm.model.named_buffers() if n in before and not torch.equal(b, before[n])]
    assert changed or any("running" in n for n, _ in lent.named_buffers())
    warm.take_back(lent)
    assert all(torch.equal(b, before[n]) for n, b in warm.model.named_buffers())
