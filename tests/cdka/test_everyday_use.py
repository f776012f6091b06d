"""Common uses of PEFT: swaps with heads and scales, tied weights, wrapped modules, biases, rejected combinations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config

import cdka
from cdka.__main__ import main

from .helpers import Net, X, adapted, bert, config, logits, net


class Headed(nn.Module):
    """A network whose head has the same name prefix as the adapter's parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(24, 32)
        self.cdka_head = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cdka_head(torch.tanh(self.first(x)))  # type: ignore[no-any-return]


def headed(seed: int = 0, **changes: Any) -> PeftModel:
    torch.manual_seed(seed)
    model = get_peft_model(Headed(), config(target_modules=["first"], modules_to_save=["cdka_head"], **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_()
    return model.eval()


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# --- hot swap


def test_a_swap_also_replaces_the_head(tmp_path: Path) -> None:
    other = headed(1)
    other.save_pretrained(tmp_path)
    model = headed(2)
    head = model.base_model.model.cdka_head.modules_to_save["default"].weight
    cdka.hotswap_adapter(model, tmp_path)
    assert model.base_model.model.cdka_head.modules_to_save["default"].weight is head
    same(model(X), other(X))


def test_a_swap_to_an_adapter_without_the_loaded_head_is_rejected(tmp_path: Path) -> None:
    get_peft_model(Headed(), config(target_modules=["first"])).save_pretrained(tmp_path)
    model = headed()
    before = model(X)
    with pytest.raises(cdka.AdapterError, match="differ in modules_to_save or other weights: cdka_head.bias"):
        cdka.hotswap_adapter(model, tmp_path)
    assert torch.equal(model(X), before)


def test_a_head_of_another_size_is_rejected_before_anything_changes(tmp_path: Path) -> None:
    other = Headed()
    other.cdka_head = nn.Linear(32, 5)
    get_peft_model(other, config(target_modules=["first"], modules_to_save=["cdka_head"])).save_pretrained(tmp_path)
    model = headed()
    before = model(X)
    with pytest.raises(cdka.AdapterError, match=r"cdka_head.* is saved with shape \(5"):
        cdka.hotswap_adapter(model, tmp_path)
    assert torch.equal(model(X), before)


@pytest.mark.parametrize("scale", [0.5, 0.0, 2.0])
def test_a_scale_that_was_set_stays_after_a_swap(tmp_path: Path, scale: float) -> None:
    torch.manual_seed(1)
    other = net(alpha=3)
    other.save_pretrained(tmp_path)
    torch.manual_seed(2)
    model = net()
    for module in [*model.modules(), *other.modules()]:
        if isinstance(module, cdka.CdkaLinear):
            module.set_scale("default", scale)
    cdka.hotswap_adapter(model, tmp_path)
    same(model(X), other(X))


def test_a_swap_into_a_merged_model_is_rejected_and_it_can_still_be_unmerged(tmp_path: Path) -> None:
    net().save_pretrained(tmp_path)
    model = net()
    weight = model.base_model.model.first.base_layer.weight.clone()
    model.merge_adapter()
    with pytest.raises(cdka.AdapterError, match="is merged into first; unmerge it first"):
        cdka.hotswap_adapter(model, tmp_path)
    model.unmerge_adapter()
    same(model.base_model.model.first.base_layer.weight, weight)


@pytest.mark.parametrize("started", [True, False])
def test_a_swap_between_weight_and_other_starts_is_rejected(tmp_path: Path, started: bool) -> None:
    saved, loaded = ("weight", True) if started else (True, "weight")
    net(init_weights=saved).save_pretrained(tmp_path)
    model = net(init_weights=loaded)
    before = model(X)
    with pytest.raises(cdka.AdapterError, match="init_weights='weight'"):
        cdka.hotswap_adapter(model, tmp_path)
    assert torch.equal(model(X), before)


def test_a_swap_of_an_adapter_that_is_not_loaded_is_rejected(tmp_path: Path) -> None:
    net().save_pretrained(tmp_path)
    with pytest.raises(cdka.AdapterError, match="no CDKA adapter named 'other'"):
        cdka.hotswap_adapter(net(), tmp_path, "other")


# --- exports


def test_a_head_whose_name_begins_with_cdka_is_exported(tmp_path: Path) -> None:
    model = headed(1)
    cdka.to_lora(model, tmp_path / "from-model")
    model.save_pretrained(tmp_path / "saved")
    cdka.to_lora(tmp_path / "saved", tmp_path / "from-folder")
    for folder in ("from-model", "from-folder"):
        loaded = PeftModel.from_pretrained(Headed(), tmp_path / folder).eval()
        assert isinstance(loaded.peft_config["default"], LoraConfig)
        same(loaded(X), model(X))


# --- names that wrappers change


def rename(folder: Path, change: Any) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({change(k): v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})


WRAPPED = {
    "the whole model was compiled": lambda key: f"_orig_mod.{key}",
    "a part was compiled": lambda key: key.replace(".encoder.", ".encoder._orig_mod."),
    "the whole model was wrapped": lambda key: f"module.{key}",
    "a part was wrapped": lambda key: key.replace(".encoder.", ".encoder.module."),
    "both": lambda key: f"module._orig_mod.{key}".replace(".encoder.", ".encoder._orig_mod."),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_keys_of_wrapped_modules_are_merged(tmp_path: Path, case: str) -> None:
    bert().save_pretrained(tmp_path / "base")
    model = adapted()
    model.save_pretrained(tmp_path / "ad")
    rename(tmp_path / "ad", WRAPPED[case])
    loaded, _ = cdka.load_adapted(tmp_path / "ad", str(tmp_path / "base"))
    same(logits(loaded), logits(model))


@pytest.mark.parametrize("case", [c for c in WRAPPED if c != "a part was wrapped"])
def test_keys_of_wrapped_modules_are_inspected_and_exported(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = adapted()
    model.save_pretrained(tmp_path / "ad")
    rename(tmp_path / "ad", WRAPPED[case])
    with pytest.raises(SystemExit):
        main(["adapter", "inspect", str(tmp_path / "ad")])
    assert "\nbert.encoder.layer.0.attention.self.query " in capsys.readouterr().out
    cdka.to_lora(tmp_path / "ad", tmp_path / "lora")
    same(logits(PeftModel.from_pretrained(bert(), tmp_path / "lora").eval()), logits(model))


def test_a_model_with_a_compiled_part_is_exported_and_swapped_by_plain_names(tmp_path: Path) -> None:
    plain = adapted()
    plain.save_pretrained(tmp_path / "ad")
    base = bert()
    base.bert.encoder = torch.compile(base.bert.encoder, backend="eager")  # type: ignore[union-attr]
    config = {"target_modules": "all-linear", "task_type": "SEQ_CLS", "init_weights": False, "r2": 4}
    torch.manual_seed(3)
    model = get_peft_model(base, cdka.CdkaConfig(**config)).eval()
    cdka.hotswap_adapter(model, tmp_path / "ad")
    same(logits(model), logits(plain))
    cdka.to_lora(model, tmp_path / "lora")
    same(logits(PeftModel.from_pretrained(bert(), tmp_path / "lora").eval()), logits(plain))


# --- tied weights


def tied() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=48, n_embd=32, n_layer=1, n_head=2, tie_word_embeddings=True)
    return AutoModelForCausalLM.from_config(config).eval()


def ids_logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(6)[None]).logits  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:Model .*tie_word_embeddings")
def test_a_start_from_a_tied_weight_is_rejected() -> None:
    with pytest.raises(cdka.AdapterError, match="a weight that lm_head shares with another module"):
        get_peft_model(tied(), cdka.CdkaConfig(target_modules=["lm_head"], r2=4, init_weights="weight"))


@pytest.mark.filterwarnings("ignore:Model .*tie_word_embeddings", "ignore:Input and output embeddings")
@pytest.mark.parametrize("safe", [True, False])
def test_merging_into_a_tied_head_leaves_the_embeddings_alone(tmp_path: Path, safe: bool) -> None:
    """PEFT's LoRA adds dW to the embeddings, too; CDKA does not."""
    lent = get_peft_model(tied(), cdka.CdkaConfig(target_modules=["lm_head"], r2=4, init_weights=False)).eval()
    expected = ids_logits(lent)
    merged = lent.merge_and_unload(safe_merge=safe)
    same(ids_logits(merged), expected)
    assert torch.equal(merged.get_input_embeddings().weight, tied().get_input_embeddings().weight)
    merged.save_pretrained(tmp_path)
    same(ids_logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), expected)


# --- combinations


def two() -> PeftModel:
    model = net()
    model.add_adapter("other", config())
    return model.eval()


@pytest.mark.parametrize(
    ("weights", "changes", "message"),
    [
        ([1.0, float("nan")], {}, "the weight nan is not a finite number"),
        ([float("inf"), 1.0], {}, "the weight inf is not a finite number"),
        ([1.0, "2"], {}, "the weight '2' is not a finite number"),
        ([True, 1.0], {}, "the weight True is not a finite number"),
        ([1.0, 1.0], {"combination_type": "svd", "r": -1}, "r=-1 is not a number of components"),
        ([1.0, 1.0], {"combination_type": "svd", "r": 0}, "r=0 is not a number of components"),
        ([1.0, 1.0], {"r": 2.5}, "r=2.5 is not a number of components"),
        ([1.0, 1.0], {"adapter_name": "a.b"}, "is no name of an adapter"),
        ([1.0, 1.0], {"adapter_name": ""}, "is no name of an adapter"),
    ],
)
def test_a_rejected_combination_leaves_nothing_behind(
    weights: list[Any], changes: dict[str, Any], message: str
) -> None:
    model = two()
    before, names = model(X), set(model.peft_config)
    with pytest.raises(cdka.AdapterError, match=message):
        model.add_weighted_adapter(["default", "other"], weights, **{"adapter_name": "new", **changes})
    assert set(model.peft_config) == names
    assert not any("new" in layer.cdka_A for layer in model.modules() if isinstance(layer, cdka.CdkaLinear))
    assert torch.equal(model(X), before)
    # The same name can be used afterwards.
    model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "new")


def test_combining_an_adapter_that_started_from_the_weight_is_rejected() -> None:
    model = net(init_weights="weight")
    with pytest.raises(cdka.AdapterError, match="cannot be combined; merge it instead"):
        model.add_weighted_adapter(["default"], [1.0], "new")
    assert set(model.peft_config) == {"default"}


def test_a_combination_that_fails_halfway_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = two()
    original = cdka.CdkaLinear.update_layer

    def fail(self: Any, name: str, *args: Any, **kwargs: Any) -> None:
        if name == "new" and self.out_features == 8:
            raise MemoryError
        original(self, name, *args, **kwargs)

    monkeypatch.setattr(cdka.CdkaLinear, "update_layer", fail)
    with pytest.raises(MemoryError):
        model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "new")
    assert "new" not in model.peft_config
    assert not any("new" in layer.cdka_A for layer in model.modules() if isinstance(layer, cdka.CdkaLinear))


# --- biases


@pytest.mark.parametrize(("bias", "trained"), [("all", {"first", "second"}), ("cdka_only", {"first"})])
def test_biases_are_trained_saved_counted_and_exported(tmp_path: Path, bias: str, trained: set[str]) -> None:
    torch.manual_seed(0)
    model = get_peft_model(Net(), config(target_modules=["first"], bias=bias))
    biases = {n: p for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")}
    assert {n.split(".")[2] for n in biases} == trained
    count, _ = model.get_nb_trainable_parameters()
    factors = sum(p.numel() for n, p in model.named_parameters() if "cdka_" in n)
    assert count == factors + sum({"first": 32, "second": 8}[name] for name in trained)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    start = {name: p.detach().clone() for name, p in biases.items()}
    model.train()(X).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(p, start[name]) for name, p in biases.items())
    expected = model.eval()(X)
    model.save_pretrained(tmp_path / "ad")
    same(PeftModel.from_pretrained(Net(), tmp_path / "ad").eval()(X), expected)
    for source, name in ((model, "lora"), (tmp_path / "ad", "lora2")):
        cdka.to_lora(source, tmp_path / name)
        same(PeftModel.from_pretrained(Net(), tmp_path / name).eval()(X), expected)
    with pytest.raises(cdka.AdapterError, match="LoKr keeps no biases"):
        cdka.to_lokr(model, tmp_path / "lokr")
    torch.manual_seed(5)
    other = get_peft_model(Net(), config(target_modules=["first"], bias=bias)).eval()
    cdka.hotswap_adapter(other, tmp_path / "ad")
    same(other(X), expected)
    same(model.merge_and_unload()(X), expected)


def test_a_second_adapter_with_biases_is_rejected() -> None:
    model = net(bias="all")
    with pytest.raises(ValueError, match="supports only 1 adapter with bias"):
        model.add_adapter("other", config(bias="cdka_only"))


def test_a_swap_of_adapters_that_differ_in_bias_is_rejected(tmp_path: Path) -> None:
    net(bias="all").save_pretrained(tmp_path)
    with pytest.raises(cdka.AdapterError, match="differ in bias: saved with 'all', loaded with 'none'"):
        cdka.hotswap_adapter(net(), tmp_path)


def test_an_unknown_bias_is_rejected_with_the_available_ones() -> None:
    with pytest.raises(cdka.CdkaError, match="bias='lora_only' is unknown; available: none, all, cdka_only"):
        cdka.CdkaConfig(bias="lora_only")
