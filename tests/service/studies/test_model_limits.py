"""A model's limits are checked at submit: positions, generated tokens, used layers, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MPNetConfig,
    MPNetModel,
    OlmoeConfig,
    OlmoeForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaModel,
    SiglipConfig,
    SiglipForImageClassification,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from tests.conftest import Api, make_study

V = 25
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": V}
POSITIONS = 34
MPN = {**TINY, "max_position_embeddings": POSITIONS}
ENCODERS: dict[str, tuple[Any, int]] = {
    "bert": (lambda: BertModel(BertConfig(**MPN)), 34),
    "roberta": (lambda: RobertaModel(RobertaConfig(**MPN, pad_token_id=1)), 32),
    "xlm-roberta": (lambda: XLMRobertaModel(XLMRobertaConfig(**MPN, pad_token_id=1)), 32),
    "mpnet": (lambda: MPNetModel(MPNetConfig(**MPN)), 32),
}
LLAMA = {**MPN, "num_key_value_heads": 2, "pad_token_id": 0}
DECODERS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=34, vocab_size=V)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**{**TINY, "ffn_dim": 32}, max_position_embeddings=34)),
}
GENERATED: dict[str, Any] = {
    "task": {
        "kind": "causal_lm",
        "metric": "exact_match",
        "columns": {"prompt": "text", "completion": "label"},
        "generation": {"max_new_tokens": 8},
    },
    "objectives": [{"metric": "exact_match", "direction": "maximize"}],
}


def saved(data_root: Path, name: str, model: Any) -> str:
    folder = data_root / f"limits-{name}"
    if not folder.exists():
        model().save_pretrained(folder)
        AutoTokenizer.from_pretrained(data_root / "tiny-bert").save_pretrained(folder)
    return folder.name


def siglip() -> Any:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 16,
        "patch_size": 8,
    }
    return SiglipForImageClassification(SiglipConfig(vision_config=vision, text_config=TINY))


def faults(api: Api, **changes: Any) -> dict[str, str]:
    """The faults' details by pointer. Empty if the study is created."""
    answer = api.call("POST", "/studies", json=make_study(**changes))
    if answer.status_code == 201:
        return {}
    assert answer.status_code == 422, answer.text
    return {e["pointer"]: e["detail"] for e in answer.json()["errors"]}


@pytest.mark.parametrize("name", ENCODERS)
def test_max_length_is_limited_to_the_positions_that_padding_leaves(api: Api, data_root: Path, name: str) -> None:
    make, most = ENCODERS[name]
    model = {"path": saved(data_root, name, make)}
    assert faults(api, model=model, training={"max_length": most}) == {}
    found = faults(api, model=model, training={"max_length": most + 1})
    assert f"{most + 1} tokens are more than the {most} positions" in found["#/training/max_length"]


@pytest.mark.parametrize("name", ENCODERS)
def test_the_longest_accepted_text_runs_and_one_token_more_fails(data_root: Path, name: str) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    make, most = ENCODERS[name]
    model = AutoModelForSequenceClassification.from_pretrained(data_root / saved(data_root, name, make), num_labels=2)
    ids = torch.full((1, most), 7)
    assert torch.isfinite(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits).all()
    longer = torch.full((1, most + 1), 7)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=longer, attention_mask=torch.ones_like(longer))


@pytest.mark.parametrize("name", DECODERS)
def test_prompt_and_new_tokens_must_fit_the_positions(api: Api, data_root: Path, name: str) -> None:
    model = {"path": saved(data_root, name, DECODERS[name])}
    assert faults(api, model=model, training={"max_length": 28}, **GENERATED) == {}
    found = faults(api, model=model, training={"max_length": 29}, **GENERATED)
    assert "need 35 positions" in found["#/training/max_length"]
    assert "lower it to 28, or lower max_new_tokens" in found["#/training/max_length"]
    # Without generation, the whole length is available.
    plain = {"kind": "causal_lm", "metric": "loss", "columns": GENERATED["task"]["columns"]}
    loss = [{"metric": "loss", "direction": "minimize"}]
    assert faults(api, model=model, task=plain, objectives=loss, training={"max_length": 34}) == {}


def test_a_text_to_text_model_generates_within_its_positions(api: Api, data_root: Path) -> None:
    config = BartConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=V,
        max_position_embeddings=34,
    )
    model = {"path": saved(data_root, "bart", lambda: BartForConditionalGeneration(config))}
    task = {**GENERATED["task"], "kind": "seq2seq_lm", "columns": {"text": "text", "target": "label"}}
    changes = {"model": model, "training": {"max_length": 34}, "objectives": GENERATED["objectives"]}
    assert faults(api, task={**task, "generation": {"max_new_tokens": 34}}, **changes) == {}
    found = faults(api, task={**task, "generation": {"max_new_tokens": 35}}, **changes)
    assert "35 new tokens are more than the 34 positions" in found["#/task/generation/max_new_tokens"]


def test_layers_without_a_gradient_are_left_out_and_reported(api: Api, data_root: Path) -> None:
    """SigLIP classifies by the mean of its patches; the attention pooling of its vision tower is never used."""
    path = saved(data_root, "siglip", siglip)
    task = {"kind": "image_classification", "columns": {"image": "text", "label": "label"}}
    study = api.create(
        model={"path": path}, task=task, budget={"configuration": {"r1": 2, "r2": 2, "r": 2}}, search={"trials": 1}
    )
    assert study["budget"]["max_parameters"] == 1792
    (note,) = study["notes"]
    assert note.startswith("3 layers get no gradient in this task and are not adapted: ")
    assert "vision_model.head.attention.out_proj" in note
    lease = api.lease()
    assert lease is not None
    assert not [layer for layer in lease["trial"]["layers"] if ".head." in layer["name"]]


def test_choosing_only_layers_without_a_gradient_is_rejected(api: Api, data_root: Path) -> None:
    task = {"kind": "image_classification", "columns": {"image": "text", "label": "label"}}
    path = saved(data_root, "siglip", siglip)
    found = faults(api, model={"path": path}, task=task, adapter={"target_modules": ["head.mlp.fc1", "head.mlp.fc2"]})
    assert "does not use the selected layers in training" in found["#/adapter/target_modules"], found


def test_experts_that_all_linear_does_not_adapt_are_reported(api: Api, data_root: Path) -> None:
    config = OlmoeConfig(**TINY, num_experts=4, num_experts_per_tok=2, pad_token_id=0)
    path = saved(data_root, "olmoe", lambda: OlmoeForCausalLM(config))
    columns = {"prompt": "text", "completion": "label"}
    study = api.create(
        model={"path": path},
        task={"kind": "causal_lm", "metric": "loss", "columns": columns},
        objectives=[{"metric": "loss", "direction": "minimize"}],
    )
    # Four experts of three matrices of 32 by 32.
    assert any(note.startswith("12288 parameters of experts are not adapted: ") for note in study["notes"])


def test_a_folder_with_two_gguf_files_is_rejected_with_their_names(api: Api, data_root: Path, tmp_path: Path) -> None:
    folder = data_root / f"two-{tmp_path.name}"
    folder.mkdir()
    for name in ("model-q8_0.gguf", "model-f16.gguf"):
        (folder / name).write_bytes(b"GGUF")
    found = faults(api, model={"path": folder.name})["#/model/path"]
    assert "model-f16.gguf" in found
    assert "model-q8_0.gguf" in found


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\x01" * 60, b"<html>"])
def test_an_unreadable_gguf_file_is_rejected_by_name(api: Api, data_root: Path, tmp_path: Path, content: bytes) -> None:
    folder = data_root / f"broken-{tmp_path.name}"
    folder.mkdir()
    (folder / "weights.gguf").write_bytes(content)
    found = faults(api, model={"path": folder.name})["#/model/path"]
    assert "weights.gguf is truncated, or no GGUF file of a known model" in found
    assert str(folder) not in found
