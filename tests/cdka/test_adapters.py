"""Several adapters on one model: mixed batches, combinations, fits, scales and starting values."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from accelerate.hooks import attach_align_device_hook
from peft import PeftModel, get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import cdka

from .helpers import ConvNet, Net, X, config, net


def two() -> PeftModel:
    model = net()
    model.add_adapter("other", config(r=2, target_modules=["second"]))
    return model


# --- mixed batches


def test_every_row_of_a_mixed_batch_gets_its_own_adapter() -> None:
    model = two()
    names = ["default", "__base__", "other", "default", "other"]
    mixed = model(X, adapter_names=names)
    base = Net()(X)
    model.set_adapter("default")
    first = model(X)
    model.set_adapter("other")
    second = model(X)
    expected = torch.stack([{"default": first, "other": second, "__base__": base}[n][i] for i, n in enumerate(names)])
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["default"] * 4, "4 names for a batch of 5"),
        (["defualt"] * 5, "no adapter named defualt; available: default, other"),
    ],
)
def test_a_mixed_batch_with_wrong_names_is_rejected(names: list[str], message: str) -> None:
    with pytest.raises(cdka.AdapterError, match=message):
        two()(X, adapter_names=names)


def test_mixed_batches_in_training_or_with_merged_adapters_are_rejected() -> None:
    model = two()
    with pytest.raises(cdka.AdapterError, match="call model.eval"):
        model.train()(X, adapter_names=["default"] * 5)
    model.eval().merge_adapter()
    with pytest.raises(cdka.AdapterError, match="unmerge them first"):
        model(X, adapter_names=["default"] * 5)


# --- weighted combinations


def delta(model: PeftModel, adapter: str, layer: str = "second") -> torch.Tensor:
    return model.base_model.model.get_submodule(layer).get_delta_weight(adapter)


def test_concatenation_is_the_weighted_sum_of_the_updates(tmp_path: Path) -> None:
    model = two()
    model.add_weighted_adapter(["default", "other"], [0.5, -2.0], "sum")
    torch.testing.assert_close(
        delta(model, "sum"), 0.5 * delta(model, "default") - 2 * delta(model, "other"), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(delta(model, "sum", "first"), 0.5 * delta(model, "default", "first"))
    model.set_adapter("sum")
    expected = model(X)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(Net(), tmp_path / "sum").eval()
    torch.testing.assert_close(loaded(X), expected)


def test_svd_keeps_the_nearest_components() -> None:
    model = two()
    model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "near", combination_type="svd", r=3)
    whole = delta(model, "default") + delta(model, "other")
    A, B = cdka.nearest_factors(whole.detach(), 2, 4, 3)
    torch.testing.assert_close(delta(model, "near"), cdka.kron_delta(A, B), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["default", "nope"], [1, 1], "new"), "no adapter named nope"),
        ((["default"], [1, 1], "new"), "2 weights for 1 adapters"),
        ((["default"], [1], "other"), "'other' already"),
        ((["default"], [1], "new", "linear"), "available: cat, svd"),
    ],
)
def test_invalid_combinations_are_rejected(arguments: Any, message: str) -> None:
    with pytest.raises(cdka.AdapterError, match=message):
        two().add_weighted_adapter(*arguments)


def test_combining_different_structures_is_rejected() -> None:
    model = net()
    model.add_adapter("other", config(r1=1))
    with pytest.raises(cdka.AdapterError, match=r"different \(r1, r2\)"):
        model.add_weighted_adapter(["default", "other"], [1, 1], "new")


# --- fit


def test_strict_rejects_and_nearest_uses_and_records_the_largest_divisors(tmp_path: Path) -> None:
    with pytest.raises(cdka.IndivisibleError, match="r2=16 does not divide d_in=24 of first"):
        net(r2=16)
    model = net(r2=16, r1=16, fit="nearest")
    layers = model.base_model.model
    assert (layers.first.r1["default"], layers.first.r2["default"]) == (16, 12)
    assert (layers.second.r1["default"], layers.second.r2["default"]) == (8, 16)
    recorded = model.peft_config["default"]
    assert recorded.r2_pattern == {"first": 12}
    assert recorded.r1_pattern == {"second": 8}
    counted = sum(p.numel() for n, p in model.named_parameters() if "cdka_" in n)
    shapes = cdka.module_shapes(Net(), ["first", "second"])
    assert cdka.count_parameters(shapes, 16, 16, 4, fit="nearest") == counted
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(Net(), tmp_path).eval()(X), model(X))


# --- scales and starting values


@pytest.mark.parametrize(
    ("rule", "scale"), [("cdka", 8 / math.sqrt(12)), ("rslora", 8 / math.sqrt(3)), ("constant", 8)]
)
def test_each_scaling_rule_gives_its_scale(rule: str, scale: float) -> None:
    model = net(scaling=rule, r=3, alpha=8)
    layer = model.base_model.model.first
    assert layer.scaling["default"] == pytest.approx(scale) == pytest.approx(model.peft_config["default"].scale)
    layer.set_scale("default", 2.0)
    assert layer.scaling["default"] == pytest.approx(2 * scale)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_weights": "pissa"}, "available: kaiming, gaussian, orthogonal, gradient, weight"),
        ({"scaling": "lora"}, "available: cdka, rslora, constant"),
        ({"fit": "loose"}, "available: strict, nearest"),
    ],
)
def test_unknown_names_are_rejected_with_the_available_ones(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(cdka.CdkaError, match=message):
        config(**arguments)


@pytest.mark.parametrize("name", ["kaiming", "gaussian", "orthogonal"])
def test_named_starts_do_not_change_the_outputs(name: str) -> None:
    torch.testing.assert_close(net(init_weights=name)(X), Net()(X), rtol=0, atol=0)


def test_a_gaussian_start_has_the_variance_of_its_fan_in() -> None:
    model = get_peft_model(
        nn.Sequential(nn.Linear(1024, 64)), config(target_modules=["0"], init_weights="gaussian", r=16)
    )
    A = model.base_model.model[0].cdka_A["default"]
    assert A.std().item() == pytest.approx(math.sqrt(4 / 1024), rel=0.05)


def test_components_of_an_orthogonal_start_do_not_overlap() -> None:
    A = net(init_weights="orthogonal").base_model.model.first.cdka_A["default"].detach().flatten(1)
    torch.testing.assert_close(A @ A.T, torch.eye(4) * 2 / 3, rtol=1e-5, atol=1e-6)
    with pytest.raises(cdka.CdkaError, match=r"r is at most 2"):
        net(init_weights="orthogonal", r1=1, r2=12, r=3, target_modules=["first"])


def test_a_weight_start_moves_the_nearest_part_of_the_weight_into_the_adapter(tmp_path: Path) -> None:
    before = Net()
    model = net(init_weights="weight")
    torch.testing.assert_close(model(X), before(X), rtol=1e-5, atol=1e-5)
    layer = model.base_model.model.first
    A, B = cdka.nearest_factors(before.first.weight.detach(), 2, 4, 4)
    torch.testing.assert_close(layer.get_delta_weight("default"), cdka.kron_delta(A, B), rtol=1e-4, atol=1e-5)
    assert layer.base_layer.weight.norm() < before.first.weight.norm()
    with torch.no_grad():
        layer.cdka_A["default"].mul_(1.5)
    trained = model(X)
    with model.disable_adapter():
        torch.testing.assert_close(model(X), before(X), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(X, adapter_names=["__base__"] * 5), before(X), rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    for lazily in (False, True):
        loaded = PeftModel.from_pretrained(Net(), tmp_path, low_cpu_mem_usage=lazily).eval()
        torch.testing.assert_close(loaded(X), trained, rtol=1e-5, atol=1e-5)
    with pytest.raises(cdka.AdapterError, match="no other adapter can share"):
        model.add_adapter("other", config())
    torch.testing.assert_close(copy.deepcopy(model).merge_and_unload()(X), trained, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.unload()(X), before(X), rtol=1e-5, atol=1e-5)


def test_a_gradient_start_points_along_the_negative_gradient() -> None:
    base = Net()
    base(X).square().sum().backward()
    gradients = {n: getattr(base, n).weight.grad for n in ("first", "second")}
    model = net(init_weights="gradient")
    torch.testing.assert_close(model(X), Net()(X), rtol=0, atol=0)
    cdka.initialize_from_gradients(model, gradients, size=0.001)
    for name in ("first", "second"):
        got, wanted = delta(model, "default", name), -gradients[name]
        S = torch.linalg.svdvals(cdka.rearrange(wanted, 2, 4))
        best = (S[:4].square().sum() / S.square().sum()).sqrt()
        cosine = nn.functional.cosine_similarity(got.flatten(), wanted.flatten(), dim=0)
        torch.testing.assert_close(cosine, best, rtol=1e-4, atol=1e-5)
        assert got.norm().item() == pytest.approx(0.001 * getattr(base, name).weight.norm().item(), rel=1e-3)
    assert model(X).square().sum() < Net()(X).square().sum()
    with pytest.raises(cdka.AdapterError, match="no gradient for adapted layer .*second"):
        cdka.initialize_from_gradients(model, {"first": gradients["first"]})
    with pytest.raises(cdka.AdapterError, match="gradient of first is zero or not finite"):
        cdka.initialize_from_gradients(model, {"first": torch.zeros(32, 24)})


# --- convolutions


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 1},
        {"kernel_size": 3},
        {"kernel_size": (3, 2), "stride": 2, "padding": 1, "bias": False},
        {"kernel_size": 3, "dilation": 2, "padding": "same", "padding_mode": "circular"},
    ],
)
def test_a_convolution_is_a_linear_map_of_patches(arguments: dict[str, Any]) -> None:
    images = torch.randn(2, 4, 9, 7)
    model = get_peft_model(ConvNet(**arguments), config(target_modules=["conv"], r2=2)).eval()
    outputs = model(images)
    base = ConvNet(**arguments)
    with torch.no_grad():
        base.conv.weight += model.base_model.model.conv.get_delta_weight("default")
    torch.testing.assert_close(outputs, base(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.merge_and_unload()(images), outputs, rtol=1e-4, atol=1e-5)
    shape = cdka.module_shapes(ConvNet(**arguments), ["conv"])[0]
    assert shape.d_in * shape.d_out == base.conv.weight.numel()


def test_a_grouped_convolution_is_rejected() -> None:
    with pytest.raises(cdka.TargetError, match="groups=2"):
        get_peft_model(ConvNet(groups=2), config(target_modules=["conv"]))


# --- copies, compilation, precision


def test_copies_and_pickles_compute_the_same() -> None:
    model = net()
    expected = model(X)
    torch.testing.assert_close(copy.deepcopy(model)(X), expected, rtol=0, atol=0)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(X), expected, rtol=0, atol=0)


# torch warns that one patch release of Python is slower; results are correct.
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_the_layer_compiles_without_graph_breaks() -> None:
    model = net()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), model(X), rtol=1e-5, atol=1e-6)
    compiled(X).sum().backward()
    assert model.base_model.model.first.cdka_A["default"].grad is not None


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_bf16_and_leaves_factors_and_gradients_in_fp32(base_dtype: torch.dtype) -> None:
    reference = net()
    model = get_peft_model(Net().to(base_dtype), config())
    model.load_state_dict(reference.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        y = model(X)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), reference(X), rtol=0.1, atol=0.1)
    y.float().square().sum().backward()
    factor = model.base_model.model.first.cdka_A["default"]
    assert factor.dtype == factor.grad.dtype == torch.float32
    reference(X).square().sum().backward()
    expected = reference.base_model.model.first.cdka_A["default"].grad
    assert nn.functional.cosine_similarity(factor.grad.flatten(), expected.flatten(), dim=0) > 0.98


def test_a_bf16_model_with_fp32_factors_answers_in_bf16() -> None:
    model = get_peft_model(Net().bfloat16(), config())
    assert model.base_model.model.first.cdka_A["default"].dtype == torch.float32
    assert model(X.bfloat16()).dtype == torch.bfloat16


def test_hooks_on_the_base_layer_are_still_called() -> None:
    model = net()
    expected = model(X)
    seen = []
    model.base_model.model.first.base_layer.register_forward_hook(lambda m, args, y: seen.append(y.shape))
    torch.testing.assert_close(model(X), expected, rtol=1e-5, atol=1e-6)
    assert seen == [(5, 32)]


def test_backward_hooks_on_the_base_layer_are_still_called() -> None:
    model = net()
    seen = []
    base = model.base_model.model.first.base_layer
    base.register_full_backward_pre_hook(lambda m, gradients: seen.append("before"))
    base.register_full_backward_hook(lambda m, given, taken: seen.append("after"))
    model(X.clone().requires_grad_()).sum().backward()
    assert seen == ["before", "after"]


def test_a_base_layer_whose_forward_was_replaced_is_still_called() -> None:
    """accelerate replaces it to move an offloaded weight to its device during a call."""
    model = net()
    expected = model(X)
    base = model.base_model.model.first.base_layer
    attach_align_device_hook(base, execution_device="cpu", offload=True)
    assert base.weight.is_meta
    torch.testing.assert_close(model(X), expected, rtol=1e-5, atol=1e-6)


def test_fully_shard_works() -> None:
    """FSDP 2 shards parameters one by one, so ParameterDict adapters are no obstacle to it."""
    model = net()
    expected = model(X).detach()
    torch.distributed.init_process_group(backend="gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for layer in (model.base_model.model.first, model.base_model.model.second, model):
            fully_shard(layer, mesh=mesh)
        outputs = model(X)
        torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-6)
        outputs.sum().backward()
        trained = [p for n, p in model.named_parameters() if "cdka_" in n]
        assert len(trained) == 4
        assert all(p.grad is not None for p in trained)
    finally:
        torch.distributed.destroy_process_group()


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = net()

    def gradients(run: Any) -> list[torch.Tensor]:
        model.zero_grad()
        run().square().sum().backward()
        return [p.grad.clone() for n, p in model.named_parameters() if "cdka_" in n]

    plain = gradients(lambda: model(X))
    again = gradients(lambda: torch.utils.checkpoint.checkpoint(model, X, use_reentrant=False))
    for ours, theirs in zip(plain, again, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
