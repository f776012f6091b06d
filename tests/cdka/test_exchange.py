"""Adapters are exported as LoRA and LoKr and imported from the paper's public code, with the same outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

import cdka
from cdka.__main__ import main

from .helpers import BERT, IDS, ConvNet, Net, X, adapted, bert, config, logits, net


@pytest.mark.parametrize("structure", [(1, 1, 2), (2, 4, 3), (4, 2, 1)])
def test_lora_computes_the_same_in_plain_peft(tmp_path: Path, structure: tuple[int, int, int]) -> None:
    r1, r2, r = structure
    model = adapted(r1=r1, r2=r2, r=r, alpha_pattern={"key": 3.0}, rank_pattern={"value": 5})
    rank = cdka.to_lora(model, tmp_path)
    assert rank == 5 * r1 * r2
    loaded = PeftModel.from_pretrained(bert(), tmp_path).eval()
    assert isinstance(loaded.peft_config["default"], LoraConfig)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    assert sum("modules_to_save" in n for n, _ in loaded.named_parameters()) == 2


def test_a_saved_adapter_is_exported_like_the_loaded_model(tmp_path: Path) -> None:
    model = adapted()
    model.save_pretrained(tmp_path / "ours")
    cdka.to_lora(model, tmp_path / "from-model")
    cdka.to_lora(tmp_path / "ours", tmp_path / "from-folder")
    one, other = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("from-model", "from-folder"))
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key])


def test_lokr_is_exact_for_one_component(tmp_path: Path) -> None:
    model = net(r=1, r1=2, r2=4, target_modules=["first"])
    errors = cdka.to_lokr(model, tmp_path)
    assert errors == {"first": 0.0}
    state = load_file(tmp_path / "adapter_model.safetensors")
    w1, w2 = (state[f"base_model.model.first.lokr_w{i}"] for i in (1, 2))
    torch.testing.assert_close(torch.kron(w1, w2), model.base_model.model.first.get_delta_weight("default"))


def test_peft_loads_the_lokr_export(tmp_path: Path) -> None:
    # PEFT factorises 32 x 24 by decompose_factor=4 into (4, 4) x (8, 6): w1 is (d_out/r1, r2).
    model = net(r=1, r1=8, r2=4, target_modules=["first"])
    cdka.to_lokr(model, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decompose_factor": 4}))
    loaded = PeftModel.from_pretrained(Net(), tmp_path).eval()
    assert isinstance(loaded.peft_config["default"], LoKrConfig)
    torch.testing.assert_close(loaded(X), model(X), rtol=0, atol=1e-5)


def test_lokr_of_several_components_is_the_nearest_one_and_returns_its_error(tmp_path: Path) -> None:
    model = net(r=3, target_modules=["first"])
    error = cdka.to_lokr(model, tmp_path)["first"]
    whole = model.base_model.model.first.get_delta_weight("default").detach()
    state = load_file(tmp_path / "adapter_model.safetensors")
    single = torch.kron(*(state[f"base_model.model.first.lokr_w{i}"] for i in (1, 2)))
    assert error == pytest.approx(float((whole - single).norm() / whole.norm()), rel=1e-4)
    S = torch.linalg.svdvals(cdka.rearrange(whole, 2, 4))
    assert error == pytest.approx(float((S[1:].square().sum() / S.square().sum()).sqrt()), rel=1e-3)


def test_adapters_of_the_reference_code_are_imported(tmp_path: Path) -> None:
    r1, r2, r, alpha = 2, 4, 3, 12.0
    A, B = torch.randn(r1 * r, 24 // r2), torch.randn(32 // r1, r2 * r)
    (tmp_path / "theirs").mkdir()
    keys = {"base_model.model.first.lora_A.weight": A, "base_model.model.first.lora_B.weight": B}
    save_file(keys, tmp_path / "theirs" / "adapter_model.safetensors")
    cdka.from_reference(tmp_path / "theirs", tmp_path / "ours", r1=r1, r2=r2, r=r, alpha=alpha)
    model = PeftModel.from_pretrained(Net(), tmp_path / "ours")
    expected = sum(torch.kron(B[:, i::r].contiguous(), A[i::r].contiguous()) for i in range(r))
    got = model.base_model.model.first.get_delta_weight("default")
    torch.testing.assert_close(got, expected * alpha / (r * r2) ** 0.5)
    with pytest.raises(cdka.AdapterError, match=r"r1\*r = 4\*3 rows of .*first.lora_A.weight; its shape is \(6, 6\)"):
        cdka.from_reference(tmp_path / "theirs", tmp_path / "no", r1=4, r2=r2, r=r, alpha=alpha)


def test_exporting_an_adapter_that_started_from_the_weight_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(cdka.AdapterError, match="merge it instead"):
        cdka.to_lora(net(init_weights="weight"), tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "adapter_config.json is missing"),
        ({"adapter_config.json": "{}"}, "adapter_model.safetensors is missing"),
        ({"adapter_config.json": '{"peft_type": "LORA"}', "adapter_model.safetensors": ""}, "type LORA, not CDKA"),
        ({"adapter_config.json": "{", "adapter_model.safetensors": ""}, "cannot be read"),
        ({"adapter_config.json": '{"peft_type": "CDKA"}', "adapter_model.safetensors": "x"}, "cannot be read"),
    ],
)
def test_broken_folders_are_rejected(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(cdka.AdapterError, match=message):
        cdka.read_adapter(tmp_path)


def test_loading_onto_another_base_model_names_the_shapes_that_differ(tmp_path: Path) -> None:
    adapted().save_pretrained(tmp_path)
    wide = AutoModelForSequenceClassification.from_config(
        BertConfig(**{**BERT.to_diff_dict(), "hidden_size": 64, "intermediate_size": 128})
    )
    with pytest.raises(RuntimeError, match=r"size mismatch.*query.*\[4, 2, 8\].*\[4, 2, 16\]"):
        PeftModel.from_pretrained(wide, tmp_path)


def test_convolutions_are_exported_as_loras_pair_of_convolutions(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"kernel_size": (3, 2), "stride": 2, "padding": 1}
    model = get_peft_model(ConvNet(**arguments), config(target_modules=["conv"], r2=2)).eval()
    cdka.to_lora(model, tmp_path)
    images = torch.randn(2, 4, 9, 7)
    loaded = PeftModel.from_pretrained(ConvNet(**arguments), tmp_path).eval()
    torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=1e-5)
    with pytest.raises(cdka.AdapterError, match="these are convolutions: conv"):
        cdka.to_lokr(model, tmp_path)


# --- hot swap


def test_hot_swap_replaces_values_in_place(tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = net(alpha=3)
    other.save_pretrained(tmp_path)
    torch.manual_seed(2)
    model = net()
    factor = model.base_model.model.first.cdka_A["default"]
    cdka.hotswap_adapter(model, tmp_path)
    assert model.base_model.model.first.cdka_A["default"] is factor
    torch.testing.assert_close(model(X), other(X))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"r": 5}, r"at first: saved with shapes \(5, 2, 6\)"), ({"target_modules": ["first"]}, "second")],
)
def test_hot_swap_of_another_structure_is_rejected_and_changes_nothing(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    net(**changes).save_pretrained(tmp_path)
    model = net()
    expected = model(X)
    with pytest.raises(cdka.AdapterError, match=message):
        cdka.hotswap_adapter(model, tmp_path)
    torch.testing.assert_close(model(X), expected, rtol=0, atol=0)


# --- the command


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["adapter", *arguments])
    return int(stop.value.code or 0)


def test_inspect_prints_the_structure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = net()
    model.save_pretrained(tmp_path)
    assert run("inspect", str(tmp_path), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["beside"] == {}
    assert told["parameters"] == sum(p.numel() for n, p in model.named_parameters() if "cdka_" in n)
    first = next(row for row in told["layers"] if row["layer"] == "first")
    assert (first["d_in"], first["d_out"], first["r1"], first["r2"], first["r"]) == (24, 32, 2, 4, 4)
    delta = model.base_model.model.first.get_delta_weight("default")
    assert first["norm"] == pytest.approx(delta.norm().item(), rel=1e-5)
    assert first["rank_bound"] >= torch.linalg.matrix_rank(delta).item()
    assert run("inspect", str(tmp_path)) == 0
    assert "2 layers" in capsys.readouterr().out


def test_export_prints_the_rank_and_merge_keeps_the_logits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = adapted()
    bert().save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "ours")
    assert run("export", str(tmp_path / "ours"), "--to", "lora", "--out", str(tmp_path / "lora")) == 0
    assert "rank 32 (exact)" in capsys.readouterr().out
    kind = ["--kind", "sequence_classification"]
    base, ours, whole = (str(tmp_path / name) for name in ("base", "ours", "merged"))
    assert run("merge", ours, "--base", base, "--out", whole, *kind) == 0
    merged: nn.Module = AutoModelForSequenceClassification.from_pretrained(whole).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, logits(model), rtol=1e-4, atol=1e-5)


def test_errors_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", str(tmp_path), "--out", str(tmp_path / "out")) == 2
    assert "adapter_config.json is missing" in capsys.readouterr().err
    get_peft_model(Net(), config()).save_pretrained(tmp_path)
    assert run("export", str(tmp_path), "--to", "dora", "--out", str(tmp_path / "out")) == 2
    assert "available: lora, lokr" in capsys.readouterr().err
