"""CDKA as a PEFT method."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import PeftType
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, LlamaConfig

import cdka

from .helpers import BERT, IDS, adapted, bert, logits

GPT2 = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2)
LLAMA = LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def test_the_registered_enum_member_behaves_like_a_built_in_one() -> None:
    member = PeftType["CDKA"]
    assert member is PeftType("CDKA") is pickle.loads(pickle.dumps(member)) is copy.deepcopy(member)
    assert member in list(PeftType)
    cdka.register()  # a second registration changes nothing
    assert list(PeftType).count(member) == 1


def test_a_fresh_adapter_changes_nothing() -> None:
    before = logits(bert())
    torch.testing.assert_close(logits(adapted(init_weights=True)), before, rtol=0, atol=0)


def test_init_weights_false_changes_the_outputs() -> None:
    assert not torch.allclose(logits(adapted()), logits(bert()), atol=1e-4)


def test_factors_have_the_documented_shapes_and_start() -> None:
    model = adapted(init_weights=True, r1=2, r2=4, r=3)
    layer = model.base_model.model.bert.encoder.layer[0].intermediate.dense
    A, B = layer.cdka_A["default"], layer.cdka_B["default"]
    assert A.shape == (3, 2, 32 // 4)
    assert B.shape == (3, 64 // 2, 4)
    assert not B.any()
    bound = 1 / math.sqrt(32 // 4)  # Kaiming-uniform with a = sqrt 5 and fan-in d_in/r2
    assert A.abs().max() <= bound
    assert A.abs().max() > 0.8 * bound
    assert layer.scaling["default"] == pytest.approx(16 / math.sqrt(3 * 4))


def test_one_by_one_components_are_lora_with_the_rslora_scale() -> None:
    ours = adapted(r1=1, r2=1, r=4, alpha=16)
    theirs = get_peft_model(
        bert(),
        LoraConfig(r=4, lora_alpha=16, use_rslora=True, target_modules="all-linear", task_type="SEQ_CLS"),
    ).eval()
    layers = {n: m for n, m in ours.named_modules() if isinstance(m, cdka.CdkaLinear)}
    assert layers
    twins = dict(theirs.named_modules())
    with torch.no_grad():
        for name, layer in layers.items():
            twins[name].lora_A["default"].weight.copy_(layer.cdka_A["default"][:, 0, :])
            twins[name].lora_B["default"].weight.copy_(layer.cdka_B["default"][:, :, 0].T)
        for name, parameter in ours.named_parameters():
            if "modules_to_save" in name:
                theirs.get_parameter(name).copy_(parameter)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-6)


def test_merge_and_unmerge() -> None:
    model = adapted()
    expected = logits(model)
    weight = model.base_model.model.bert.encoder.layer[0].output.dense.base_layer.weight
    before = weight.clone()
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(weight, before)
    model.unmerge_adapter()
    torch.testing.assert_close(weight, before, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


def test_safe_merge_rejects_a_nan_adapter_and_keeps_the_weight() -> None:
    model = adapted()
    layer = model.base_model.model.bert.encoder.layer[0].output.dense
    layer.cdka_B["default"].data[0, 0, 0] = float("nan")
    before = layer.base_layer.weight.clone()
    with pytest.raises(ValueError, match="NaNs detected"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before)


def test_disabling_switching_and_deleting_adapters() -> None:
    model = adapted()
    first = logits(model)
    model.add_adapter(
        "second",
        cdka.CdkaConfig(r1=1, r2=8, r=2, target_modules=["query"], init_weights=False, task_type="SEQ_CLS"),
    )
    model.set_adapter("second")
    assert not torch.allclose(logits(model), first, atol=1e-5)
    model.set_adapter("default")
    torch.testing.assert_close(logits(model), first)
    model.delete_adapter("second")
    torch.testing.assert_close(logits(model), first)
    with model.disable_adapter():
        assert not torch.allclose(logits(model), first, atol=1e-5)


def test_save_and_load(tmp_path: Path) -> None:
    model = adapted(r1_pattern={"query": 4}, alpha_pattern={"key": 8})
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "CDKA"
    loaded = PeftModel.from_pretrained(bert(), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-7)
    assert loaded.base_model.model.bert.encoder.layer[0].attention.self.query.r1["default"] == 4


def test_only_adapter_and_head_are_trained() -> None:
    model = adapted(init_weights=True).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("cdka_" in name or "modules_to_save" in name for name in trained)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    first = None
    for _ in range(30):
        loss = model(IDS, labels=torch.tensor([0, 1])).loss
        first = first if first is not None else loss.item()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < first / 2


def test_a_size_that_does_not_divide_names_layer_and_divisors() -> None:
    with pytest.raises(
        cdka.IndivisibleError, match=r"r2=7 does not divide d_in=32 of bert\.encoder\.layer\.0.*divisors near it: 4, 8"
    ):
        adapted(r2=7)


def test_a_module_that_is_not_linear_is_rejected_by_name() -> None:
    with pytest.raises(cdka.TargetError, match="bert.embeddings.word_embeddings is a Embedding"):
        adapted(target_modules=["word_embeddings"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r1": 0}, "r1=0 is not a component size"),
        ({"r2": 2.5}, "r2=2.5 is not a component size"),
        ({"r": True}, "r=True is not a component size"),
        ({"alpha": -1}, "alpha=-1 is not a scale"),
        ({"alpha": float("nan")}, "alpha=nan is not a scale"),
        ({"dropout": 1.0}, "dropout=1.0 is not a probability"),
        ({"bias": "lora_only"}, "available: none, all, cdka_only"),
        ({"rank_pattern": {"query": 0}}, "r of 'query'=0 is not a component size"),
        ({"target_modules": ".*q", "layers_to_transform": [0]}, "not with a regular expression"),
    ],
)
def test_invalid_arguments_are_rejected_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(cdka.CdkaError, match=message):
        cdka.CdkaConfig(**arguments)


@pytest.mark.parametrize(
    ("config", "auto", "kind"),
    [
        (BERT, AutoModelForSequenceClassification, "sequence_classification"),
        (GPT2, AutoModelForCausalLM, "causal_lm"),
        (LLAMA, AutoModelForCausalLM, "causal_lm"),
    ],
    ids=["bert", "gpt2", "llama"],
)
@pytest.mark.parametrize("structure", [(1, 1, 3), (2, 8, 4), (4, 2, 1)])
def test_counts_equal_those_of_the_instantiated_model(
    config: Any, auto: Any, kind: str, structure: tuple[int, int, int]
) -> None:
    r1, r2, r = structure
    shapes = cdka.module_shapes(config, "all-linear", kind)
    task = "SEQ_CLS" if kind == "sequence_classification" else "CAUSAL_LM"
    model = get_peft_model(
        auto.from_config(config), cdka.CdkaConfig(r1=r1, r2=r2, r=r, target_modules="all-linear", task_type=task)
    )
    counted = sum(p.numel() for name, p in model.named_parameters() if "cdka_" in name)
    assert cdka.count_parameters(shapes, r1, r2, r) == counted
    adapted_layers = [n for n, m in model.named_modules() if isinstance(m, cdka.CdkaLinear)]
    assert len(adapted_layers) == len(shapes)
    assert all(n.endswith(s.name) for n, s in zip(adapted_layers, shapes, strict=True))


def test_targets_default_to_pefts_mapping_for_lora() -> None:
    names = {s.name.rsplit(".", 1)[-1] for s in cdka.module_shapes(LLAMA, None, "causal_lm")}
    assert names == {"q_proj", "v_proj"}


def test_targets_that_select_nothing_are_rejected_with_the_available_names() -> None:
    with pytest.raises(cdka.TargetError, match="linear layers are named: .*query"):
        cdka.module_shapes(BERT, ["nope"], "sequence_classification")
