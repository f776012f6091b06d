"""An adapter's class names reach a plain pipeline, merged or loaded; other base models are rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    pipeline,
)

import cdka
from cdka.__main__ import main

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 9}
CLASSES = ["class 0", "class 1", "class 2", "class 10"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "goal", "match", "bank", "profit"]
TEXT = "goal match bank"


def tokenizer(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return BertTokenizerFast(vocab=str(folder / "vocab.txt"))


def base(folder: Path, seed: int = 0, **config: Any) -> Path:
    """An encoder without a head, as it comes from pretraining."""
    torch.manual_seed(seed)
    BertModel(BertConfig(**{**TINY, **config})).save_pretrained(folder)
    tokenizer(folder).save_pretrained(folder)
    return folder


def classifier(folder: Path, base_folder: Path, **task: Any) -> nn.Module:
    """Write an adapter as a study stores it. Returns the adapted model in evaluation mode."""
    config = cdka.CdkaConfig(
        r1=2, r2=2, r=2, target_modules=["query", "value"], task_type="SEQ_CLS", init_weights=False
    )
    model = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=len(CLASSES))
    lent = get_peft_model(model, config)
    lent.save_pretrained(folder)
    told = {
        "kind": "sequence_classification",
        "base_model": str(base_folder),
        "base_sha256": cdka.weights_digest(base_folder),
        "classes": CLASSES,
        "columns": {"text": "body"},
        **task,
    }
    cdka.TaskFile(**told).write(folder)
    tokenizer(base_folder).save_pretrained(folder)
    return lent.eval()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["adapter", *arguments])
    return int(stop.value.code or 0)


def scores(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[2, 5, 6, 7, 3]])).logits[0].softmax(-1)  # type: ignore[no-any-return]


def test_a_merged_classifier_names_its_classes_in_a_plain_pipeline(tmp_path: Path) -> None:
    model = classifier(tmp_path / "ad", base(tmp_path / "base"))
    assert run("merge", str(tmp_path / "ad"), "--out", str(tmp_path / "merged")) == 0
    classify = pipeline("text-classification", model=str(tmp_path / "merged"))
    found = classify(TEXT, top_k=None)
    expected = dict(zip(CLASSES, scores(model).tolist(), strict=True))
    assert {f["label"]: f["score"] for f in found} == pytest.approx(expected, abs=1e-5)
    assert type(classify.model) is BertForSequenceClassification
    assert classify.model.config.id2label == dict(enumerate(CLASSES))


def test_a_loaded_adapter_runs_in_a_plain_pipeline(tmp_path: Path) -> None:
    model = classifier(tmp_path / "ad", base(tmp_path / "base"))
    loaded, processing = cdka.load_adapted(tmp_path / "ad")
    (found,) = pipeline("text-classification", model=loaded, tokenizer=processing)(TEXT)
    best = int(scores(model).argmax())
    assert (found["label"], found["score"]) == (CLASSES[best], pytest.approx(float(scores(model)[best]), abs=1e-5))


def test_a_decoder_generates_the_same_after_merging(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**{**TINY, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 3})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    adapter = cdka.CdkaConfig(r1=2, r2=2, r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_weights=False)
    lent = get_peft_model(plain, adapter)
    lent.save_pretrained(tmp_path / "ad")
    assert run("merge", str(tmp_path / "ad"), "--base", str(tmp_path / "base"), "--out", str(tmp_path / "out")) == 0
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, lent.eval()(ids).logits, rtol=1e-4, atol=1e-5)


def other_weights(folder: Path) -> Path:
    return base(folder, seed=1)


def deeper(folder: Path) -> Path:
    return base(folder, num_hidden_layers=3)


def shallower(folder: Path) -> Path:
    return base(folder, num_hidden_layers=1)


def wider(folder: Path) -> Path:
    return base(folder, hidden_size=64)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (other_weights, "the adapter was trained on"),
        (deeper, "the adapter was trained on"),
        (shallower, "the adapter was trained on"),
        (wider, "the adapter was trained on"),
    ],
)
def test_another_base_model_is_rejected_by_its_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, told: str
) -> None:
    classifier(tmp_path / "ad", base(tmp_path / "base"))
    other = make(tmp_path / "other")
    capsys.readouterr()
    assert run("merge", str(tmp_path / "ad"), "--base", str(other), "--out", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (deeper, "the adapter would reach bert.encoder.layer.2.attention.self.query"),
        (shallower, "it has no layer bert.encoder.layer.1.attention.self.query"),
        (wider, "query maps 64 to 64 values, the adapter's 32 to 32"),
    ],
)
def test_another_base_model_is_rejected_by_its_layers_if_no_hash_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, told: str
) -> None:
    classifier(tmp_path / "ad", base(tmp_path / "base"), base_sha256=None)
    other = make(tmp_path / "other")
    capsys.readouterr()
    assert run("merge", str(tmp_path / "ad"), "--base", str(other), "--out", str(tmp_path / "out")) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_same_base_weights_in_another_layout_are_accepted(tmp_path: Path) -> None:
    classifier(tmp_path / "ad", base(tmp_path / "base"))
    BertModel.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert run("merge", str(tmp_path / "ad"), "--base", str(tmp_path / "sharded"), "--out", str(tmp_path / "out")) == 0


def test_another_base_model_is_accepted_with_any_base(tmp_path: Path) -> None:
    classifier(tmp_path / "ad", base(tmp_path / "base"))
    arguments = ["--base", str(other_weights(tmp_path / "other")), "--out", str(tmp_path / "out"), "--any-base"]
    assert run("merge", str(tmp_path / "ad"), *arguments) == 0


def test_a_missing_head_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter without modules to save, on a base model without a head: its answers would be random."""
    folder = base(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    lent = get_peft_model(model, cdka.CdkaConfig(r1=2, r2=2, r=2, target_modules=["query"], init_weights=False))
    lent.save_pretrained(tmp_path / "ad")
    arguments = ["--base", str(folder), "--out", str(tmp_path / "out"), "--kind", "sequence_classification"]
    assert run("merge", str(tmp_path / "ad"), *arguments) == 2
    assert "neither the adapter nor its base model has the weights" in capsys.readouterr().err


def test_a_task_is_read_from_the_adapter_and_not_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier(tmp_path / "ad", base(tmp_path / "base"))
    out = ["--out", str(tmp_path / "out")]
    assert run("merge", str(tmp_path / "ad"), *out, "--kind", "causal_lm") == 2
    assert "the adapter is for sequence_classification, not for causal_lm" in capsys.readouterr().err
    (tmp_path / "ad" / "cdka_task.json").unlink()
    # PEFT's task type still gives the kind, and the head gives the number of classes.
    assert run("merge", str(tmp_path / "ad"), *out, "--base", str(tmp_path / "base")) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert len(config["id2label"]) == 4


def test_an_adapter_without_a_task_needs_a_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = base(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    get_peft_model(model, cdka.CdkaConfig(target_modules=["query"])).save_pretrained(tmp_path / "ad")
    arguments = ["--base", str(folder), "--out", str(tmp_path / "out")]
    assert run("merge", str(tmp_path / "ad"), *arguments) == 2
    assert "name the kind (sequence_classification" in capsys.readouterr().err
    assert run("merge", str(tmp_path / "ad"), *arguments, "--kind", "poetry") == 2
    assert "unknown kind 'poetry'; available: " in capsys.readouterr().err


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = base(tmp_path / "base")
    classifier(tmp_path / "ad", folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for base_option in (["--base", str(folder)], []):
        assert run("merge", str(tmp_path / "ad"), *base_option, "--out", str(folder)) == 2
    assert run("merge", str(tmp_path / "ad"), "--out", str(tmp_path / "ad")) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    (tmp_path / "empty").mkdir()
    assert run("merge", str(tmp_path / "ad"), "--out", str(tmp_path / "empty")) == 0


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "adapter_config.json is missing"),
        ({"cdka_task.json": "{"}, "cdka_task.json cannot be read"),
        ({"cdka_task.json": "[]"}, "cdka_task.json cannot be read"),
        ({"cdka_task.json": '{"kind": "sequence_classification"}'}, "cdka_task.json cannot be read"),
        ({"cdka_task.json": '{"kind": "causal_lm", "base_model": 7}'}, "base_model is of another type"),
        ({"cdka_task.json": '{"kind": "causal_lm", "base_model": "b", "classes": [1]}'}, "classes are names"),
        ({"cdka_task.json": '{"kind": "x", "base_model": "/nowhere"}'}, "has no model class here"),
        ({"cdka_task.json": '{"kind": "causal_lm", "base_model": "/no/where"}'}, "there is no folder '/no/where' here"),
        ({"cdka_task.json": '{"kind": "causal_lm", "base_model": ".cdka/demo/m"}'}, "name the base model"),
    ],
)
def test_a_folder_that_cannot_be_merged_is_rejected_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], told: str
) -> None:
    if files:
        classifier(tmp_path / "ad", base(tmp_path / "base"))
    for name, content in files.items():
        (tmp_path / "ad" / name).write_text(content)
    capsys.readouterr()
    assert run("merge", str(tmp_path / "ad"), "--out", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_exports_keep_classes_and_tokenizer(tmp_path: Path) -> None:
    classifier(tmp_path / "ad", base(tmp_path / "base"))
    assert run("export", str(tmp_path / "ad"), "--out", str(tmp_path / "lora")) == 0
    task = cdka.read_task_file(tmp_path / "lora")
    assert task is not None
    assert task.classes == CLASSES
    assert (tmp_path / "lora" / "tokenizer.json").is_file()
