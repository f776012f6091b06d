"""Studies and trials use the same rule for heads: planned parameters equal trained ones, with and without heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    ElectraConfig,
    ElectraForPreTraining,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from tests.conftest import Api
from workers.runner.runner import Runner

from .helpers import classes, run

V = 25
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": V}
IDS = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": V}
# With (r1, r2, r) = (2, 2, 2) two layers of width 32 and 64 cost 1,792 parameters; a pooler would add 128.
MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "distilbert": (lambda: DistilBertModel(DistilBertConfig(**DISTIL)), 1792),
    "modernbert": (lambda: ModernBertModel(ModernBertConfig(**{**TINY, "num_hidden_layers": 4}, **IDS)), 3584),
    "deberta-v2": (lambda: DebertaV2Model(DebertaV2Config(**TINY, pooler_hidden_size=32)), 1792),
    "bert from an MLM": (lambda: BertForMaskedLM(BertConfig(**TINY)), 1792),
    "mpnet with its pooler": (lambda: MPNetModel(MPNetConfig(**TINY)), 1792),
    "roberta from an MLM": (lambda: RobertaForMaskedLM(RobertaConfig(**TINY, pad_token_id=1)), 1792),
    "electra discriminator": (lambda: ElectraForPreTraining(ElectraConfig(**TINY, embedding_size=32)), 1792),
}


def save(model: Any, data_root: Path, name: str) -> str:
    folder = data_root / name.replace(" ", "-")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(data_root / "tiny-bert").save_pretrained(folder)
    return folder.name


@pytest.mark.parametrize("name", MODELS)
def test_planned_parameters_equal_trained_parameters(api: Api, runner: Runner, data_root: Path, name: str) -> None:
    make, expected = MODELS[name]
    torch.manual_seed(0)
    study, trial = run(api, runner, save(make(), data_root, name))
    assert trial["state"] == "completed", trial["failure"]
    real = sum(
        weight.numel()
        for key, weight in load_file(Path(trial["artifact"]) / "adapter_model.safetensors").items()
        if ".cdka_" in key
    )
    assert study["budget"]["max_parameters"] == trial["parameters"] == real == expected


@pytest.mark.parametrize("name", ["distilbert", "bert from an MLM"])
def test_a_lora_baseline_adapts_the_same_layers(api: Api, runner: Runner, data_root: Path, name: str) -> None:
    make, expected = MODELS[name]
    study, _ = run(
        api,
        runner,
        save(make(), data_root, f"{name} lora"),
        compare={"seeds": 1, "learning_rate": "shared", "predictors": ["guideline"], "baselines": ["lora"]},
    )
    while (lease := runner._next_lease()) is not None:
        runner.run_lease(lease)
    trials = api.call("GET", f"/studies/{study['id']}/trials").json()["items"]
    (trial,) = [t for t in trials if t["method"] == "lora"]
    assert trial["state"] == "completed", trial["failure"]
    weights = load_file(Path(trial["artifact"]) / "adapter_model.safetensors")
    assert sum(w.numel() for k, w in weights.items() if ".lora_" in k) == trial["parameters"] == expected


def test_distilbert_saved_with_its_head_is_trained(api: Api, runner: Runner, data_root: Path) -> None:
    model = DistilBertForSequenceClassification(DistilBertConfig(**DISTIL, num_labels=2))
    study, trial = run(api, runner, save(model, data_root, "distilbert with its head"))
    assert trial["state"] == "completed", trial["failure"]
    assert study["budget"]["max_parameters"] == 1792
    saved = load_file(Path(trial["artifact"]) / "adapter_model.safetensors")
    assert {k.split(".")[2] for k in saved if "cdka_" not in k} == {"classifier", "pre_classifier"}


def with_head(data_root: Path, name: str, id2label: dict[int, str]) -> tuple[str, BertForSequenceClassification]:
    torch.manual_seed(1)
    config = BertConfig(**TINY, id2label=id2label, label2id={v: k for k, v in id2label.items()})
    model = BertForSequenceClassification(config)
    return save(model, data_root, name), model


def test_a_head_with_the_same_classes_in_another_order_is_mapped_by_name(
    api: Api, runner: Runner, data_root: Path
) -> None:
    """The data's classes sort as business, sport; the checkpoint has them in reverse order."""
    path, model = with_head(data_root, "sport-first", {0: "sport", 1: "business"})
    _, trial = run(api, runner, path)
    assert trial["state"] == "completed", trial["failure"]
    assert classes(trial) == ["sport", "business"]
    warm = runner._warm.model
    assert warm is not None
    assert torch.equal(warm.model.classifier.weight, model.classifier.weight)
    assert warm.model.config.id2label == {0: "sport", 1: "business"}
    inputs = api.call("GET", f"/studies/{trial['study_id']}").json()["inputs"]
    assert inputs["classes"] == ["sport", "business"]


@pytest.mark.parametrize(
    "id2label",
    [{0: "pos", 1: "neg"}, {0: "sport", 1: "business", 2: "politics"}],
    ids=["as many, others", "one more"],
)
def test_a_head_for_other_classes_is_initialised_anew_and_noted(
    api: Api, runner: Runner, data_root: Path, id2label: dict[int, str]
) -> None:
    path, model = with_head(data_root, f"other-classes-{len(id2label)}", id2label)
    study, trial = run(api, runner, path)
    assert trial["state"] == "completed", trial["failure"]
    assert classes(trial) == ["business", "sport"]
    warm = runner._warm.model
    assert warm is not None
    assert not torch.equal(warm.model.classifier.weight[:2], model.classifier.weight[:2])
    notes = " ".join(api.call("GET", f"/studies/{study['id']}").json()["inputs"]["notes"])
    assert "initialised anew in every trial: classifier" in notes


def test_a_head_with_unnamed_classes_is_initialised_anew(api: Api, runner: Runner, data_root: Path) -> None:
    """It has as many classes as the data, but without names they cannot be matched."""
    path, _ = with_head(data_root, "unnamed", {0: "LABEL_0", 1: "LABEL_1"})
    _, trial = run(api, runner, path)
    assert trial["state"] == "completed", trial["failure"]
    assert classes(trial) == ["business", "sport"]
    assert runner._warm.model is not None
    assert runner._warm.model.new_modules == ("classifier",)
