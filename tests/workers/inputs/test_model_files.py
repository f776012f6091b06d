"""Unusual model folders: quantised, with an adapter, without a tokenizer, configured for another task."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from tests.conftest import Api, make_study, sentences, write_lines
from workers.runner.runner import Runner

from .helpers import change_config, change_weights, classes, refusal, run


def one_trial(api: Api, runner: Runner, path: str, **changes: Any) -> dict[str, Any]:
    study = api.create(**{"model": {"path": path}, "search": {"trials": 1}, "training": {"epochs": 1}, **changes})
    lease = runner._next_lease()
    assert lease is not None
    runner.run_lease(lease)
    trial = api.call("GET", f"/trials/{lease.trial.id}").json()
    trial["study"] = api.call("GET", f"/studies/{study['id']}").json()
    return trial  # type: ignore[no-any-return]


def test_a_checkpoint_of_16_bits_is_trained_in_mixed_precision(api: Api, runner: Runner, copied: Path) -> None:
    change_weights(copied, lambda found: {name: weight.bfloat16() for name, weight in found.items()})
    change_config(copied, dtype="bfloat16")
    trial = one_trial(api, runner, copied.name, training={"epochs": 1, "precision": "bf16"})
    assert trial["state"] == "completed", trial["failure"]


# --- tokenizers


@pytest.mark.parametrize("left", ["nothing", "special_tokens_map.json"])
def test_a_model_without_tokenizer_files_is_rejected(api: Api, runner: Runner, copied: Path, left: str) -> None:
    for file in copied.iterdir():
        if file.name not in ("config.json", "model.safetensors", left):
            file.unlink()
    assert "there are no tokenizer files in" in refusal(api, runner, copied.name)


@pytest.mark.parametrize("content", ["{}", "[]", "not json"])
def test_an_unreadable_tokenizer_is_rejected_without_its_full_path(
    api: Api, runner: Runner, copied: Path, content: str
) -> None:
    (copied / "tokenizer.json").write_text(content)
    reason = refusal(api, runner, copied.name)
    assert f"the tokenizer of '{copied.name}' cannot be read: " in reason
    assert str(copied) not in reason


def test_padding_does_not_change_a_decoders_logits(api: Api, runner: Runner, zoo: Path, tmp_path: Path) -> None:
    """The config's padding token differs from the tokenizer's."""
    folder = zoo / f"llama-{tmp_path.name}"
    shutil.copytree(zoo / "tiny-llama", folder)
    change_config(folder, pad_token_id=5)
    rows = [{"text": "one two" if k % 2 else "one two three four five", "label": k % 2} for k in range(40)]
    write_lines(zoo / "padded.jsonl", rows)
    task = {"kind": "sequence_classification", "dataset": {"path": "json", "data_files": {"train": "padded.jsonl"}}}
    trial = one_trial(api, runner, folder.name, task=task)
    assert trial["state"] == "completed", trial["failure"]
    assert runner._warm.model is not None
    assert runner._warm.prepared is not None
    model, tokenizer = runner._warm.model.model.eval(), runner._warm.prepared.tokenizer
    alone = tokenizer(["one two"], return_tensors="pt")
    batch = tokenizer(["one two", "one two three four five"], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits[0], model(**alone).logits[0], rtol=1e-4, atol=1e-5)


# --- settings of another task


def with_head(data_root: Path, name: str, **config: Any) -> str:
    folder = data_root / name
    if not folder.exists():
        shutil.copytree(data_root / "tiny-bert", folder)
        own = json.loads((folder / "config.json").read_text())
        made = BertForSequenceClassification(BertConfig(**{**own, "num_labels": config.pop("num_labels", 2), **config}))
        made.save_pretrained(folder)
    return name


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_classification_ignores_the_checkpoints_problem_type(
    api: Api, runner: Runner, data_root: Path, problem: str, batch_size: int
) -> None:
    path = with_head(data_root, f"was-{problem}", problem_type=problem)
    trial = one_trial(api, runner, path, training={"epochs": 1, "batch_size": batch_size})
    assert trial["state"] == "completed", trial["failure"]
    assert runner._warm.model is not None
    assert runner._warm.model.model.config.problem_type == "single_label_classification"


def test_a_classifier_becomes_a_regression(api: Api, runner: Runner, data_root: Path) -> None:
    path = with_head(data_root, "was-classifier", problem_type="single_label_classification", num_labels=3)
    rows = [{"text": row["text"], "size": k % 5} for k, row in enumerate(sentences(60))]
    write_lines(data_root / "sizes.jsonl", rows)
    task = {
        "kind": "sequence_regression",
        "dataset": {"path": "json", "data_files": {"train": "sizes.jsonl"}},
        "columns": {"text": "text", "label": "size"},
    }
    trial = one_trial(api, runner, path, task=task)
    assert trial["state"] == "completed", trial["failure"]


@pytest.mark.parametrize("head", [False, True])
def test_declared_labels_set_the_order_of_the_outputs(api: Api, runner: Runner, data_root: Path, head: bool) -> None:
    names = {0: "sport", 1: "business"}
    label2id = {v: k for k, v in names.items()}
    path = with_head(data_root, "sport-before-business", id2label=names, label2id=label2id) if head else "tiny-bert"
    task = {**make_study()["task"], "labels": ["business", "sport"]}
    _, trial = run(api, runner, path, task=task)
    assert trial["state"] == "completed", trial["failure"]
    assert classes(trial) == ["business", "sport"]


# --- adapters and quantised weights


def test_a_folder_with_an_adapter_is_rejected_as_a_base_model(
    api: Api, runner: Runner, data_root: Path, copied: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(copied, num_labels=2)
    get_peft_model(model, LoraConfig(target_modules=["query"])).save_pretrained(copied)
    assert "holds an adapter (adapter_config.json): name its base model" in refusal(api, runner, copied.name)
    alone = data_root / f"{copied.name}-alone"
    alone.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.move(copied / name, alone / name)
    assert "holds an adapter (adapter_config.json): name its base model" in refusal(api, runner, alone.name)


def test_adapter_weights_among_a_models_weights_are_rejected(api: Api, runner: Runner, copied: Path) -> None:
    def add(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "encoder.layer.0.attention.self.query"
        return {
            **found,
            f"{name}.lora_A.default.weight": torch.ones(2, 32),
            f"{name}.lora_B.default.weight": torch.ones(32, 2),
        }

    change_weights(copied, add)
    reason = refusal(api, runner, copied.name)
    assert "hold an adapter's weights beside the model's, which would be ignored: " in reason
    assert "encoder.layer.0.attention.self.query.lora_A.default.weight" in reason


def test_quantised_weights_without_their_config_are_rejected(api: Api, runner: Runner, copied: Path) -> None:
    name = "encoder.layer.0.attention.self.query.weight"

    def quantise(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**found, name: (found[name] * 127).to(torch.int8), f"{name}.SCB": torch.ones(32)}

    change_weights(copied, quantise)
    reason = refusal(api, runner, copied.name)
    assert f"are quantised ({name} is stored as I8), but its config has no quantization_config" in reason


def test_a_weight_that_only_later_rows_use_is_checked_too(api: Api, runner: Runner, copied: Path) -> None:
    def spoil(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found["embeddings.word_embeddings.weight"][24] = float("nan")  # a word that only the last rows contain
        return found

    change_weights(copied, spoil)
    reason = refusal(api, runner, copied.name)
    assert "embeddings.word_embeddings.weight has values that are not finite" in reason


# --- files outside the model's folder


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "sub/part.safetensors"])
@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_that_names_files_outside_its_folder_is_rejected(
    api: Api, runner: Runner, copied: Path, name: str, form: str
) -> None:
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").rename(copied.parent / "elsewhere.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, name)}
    (copied / f"{form}.index.json").write_text(json.dumps(index))
    reason = refusal(api, runner, copied.name)
    assert name in reason
    assert "folder" in reason


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_model_files_that_link_outside_the_data_directories_are_rejected(
    api: Api, runner: Runner, copied: Path, tmp_path: Path, file: str
) -> None:
    shutil.move(copied / file, tmp_path / file)
    (copied / file).symlink_to(tmp_path / file)
    assert f"has a link that leads out of the data directories: {file}" in refusal(api, runner, copied.name)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"num_attention_heads": 3}, "the config cannot be used: The hidden size (32) is not a multiple"),
        ({"hidden_act": "zelu"}, "'zelu'"),
        ({"id2label": ["a", "b"]}, "its config cannot be used: "),
        ({"hidden_size": "32"}, "hidden_size"),
    ],
)
def test_an_unusable_config_is_rejected_with_the_reason(
    api: Api, runner: Runner, copied: Path, config: dict[str, Any], told: str
) -> None:
    change_config(copied, **config)
    reason = refusal(api, runner, copied.name)
    assert told in reason
    assert not reason.rstrip().endswith(":")
    assert str(copied) not in reason


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0", b"PK\x03\x04cut"])
def test_a_faulty_pytorch_file_is_rejected_by_name(api: Api, runner: Runner, copied: Path, content: bytes) -> None:
    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(content)
    reason = refusal(api, runner, copied.name)
    assert "pytorch_model.bin is " in reason
    assert "weights_only" not in reason
