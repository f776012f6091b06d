"""Layers with the same input are computed together: which layers, with which results, and when they are not."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5Model,
)

import cdka
from cdka import groups
from cdka.fused import plain
from cdka.groups import LayerTensors, grouped

D = 32
X = torch.randn(5, 7, D, generator=torch.Generator().manual_seed(3))


class Attention(nn.Module):
    """Query, key and value of different widths, as with grouped-query attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(D, 48), nn.Linear(D, 16, bias=False), nn.Linear(D, 16)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        q, k = self.q_proj(x), self.k_proj(x if other is None else other)
        return torch.cat([q, k, self.v_proj(x)], -1)


def adapted(net: nn.Module | None = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {"r1": 2, "r2": 4, "r": 3, "init_weights": False, "target_modules": "all-linear"}
    options["target_modules"] = ["q_proj", "k_proj", "v_proj"] if net is None else options["target_modules"]
    return get_peft_model(net or Attention(), cdka.CdkaConfig(**options | changes)).train()


def alone(model: Any) -> Any:
    """A copy of the model whose layers are computed one by one."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, cdka.modules.CdkaLinear):
            layer.group = None
    return model


def gradients(model: Any, x: Tensor, **kwargs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x, **kwargs)
    (y.double() * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "x": x.grad, "y": y.detach()}


def same(first: dict[str, Tensor], second: dict[str, Tensor], **tolerance: Any) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of layers in each group that was computed."""
    sizes: list[int] = []
    original = groups.grouped

    def counted(x: Tensor, layers: list[LayerTensors], *more: Any) -> tuple[Tensor, ...]:
        sizes.append(len(layers))
        return original(x, layers, *more)

    monkeypatch.setattr(groups, "grouped", counted)
    return sizes


@pytest.mark.parametrize("need_x", [True, False])
@pytest.mark.parametrize("structures", [[(1, 3)], [(2, 3), (1, 2)], [(4, 1), (2, 3), (1, 8)]])
def test_outputs_and_gradients_match_the_formula(structures: list[tuple[int, int]], need_x: bool) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 2, 8, dtype=torch.float64, requires_grad=need_x)
    layers, r2 = [], 2
    for k, (r1, r) in enumerate(structures):
        A = torch.randn(r, r1, 8 // r2, dtype=torch.float64, requires_grad=True)
        B = torch.randn(r, 4 * (k + 1) // r1, r2, dtype=torch.float64, requires_grad=True)
        W = torch.randn(4 * (k + 1), 8, dtype=torch.float64)
        b = torch.randn(4 * (k + 1), dtype=torch.float64) if k % 2 else None
        layers.append(LayerTensors(A, B, 0.5 + k, W, b))
    inputs = [t for layer in layers for t in (layer.A, layer.B)] + ([x] if need_x else [])
    expected = [plain(x, *layer) for layer in layers]
    found = grouped(x, layers)
    cotangents = [torch.randn_like(y) for y in expected]
    for y, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(y, wanted)
    for g, wanted in zip(
        torch.autograd.grad(found, inputs, cotangents),
        torch.autograd.grad(expected, inputs, cotangents),
        strict=True,
    ):
        torch.testing.assert_close(g, wanted)
    assert torch.autograd.gradcheck(lambda *_: grouped(x, layers), inputs)
    assert torch.autograd.gradgradcheck(lambda *_: grouped(x, layers), inputs, fast_mode=True)


MODELS: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "llama": (
        lambda: LlamaModel(
            LlamaConfig(
                vocab_size=16,
                hidden_size=D,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        ),
        [3, 2, 3, 2],
    ),
    "bert": (
        lambda: BertModel(
            BertConfig(vocab_size=16, hidden_size=D, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        ),
        [3, 3],
    ),
    "distilbert": (
        lambda: DistilBertModel(DistilBertConfig(vocab_size=16, dim=D, hidden_dim=64, n_layers=1, n_heads=4)),
        [3],
    ),
    "deberta": (
        lambda: DebertaV2Model(
            DebertaV2Config(
                vocab_size=16, hidden_size=D, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
            )
        ),
        [3],
    ),
    # Encoder: q, k, v. Decoder: q, k, v; in cross-attention key and value alone; the gated layers of each.
    "t5": (
        lambda: T5Model(
            T5Config(
                vocab_size=16,
                d_model=D,
                d_kv=8,
                d_ff=64,
                num_layers=1,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                decoder_start_token_id=0,
            )
        ),
        [3, 2, 3, 2, 2],
    ),
}


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_layers_of_real_models_are_grouped_by_their_input(name: str, checkpointed: bool, together: list[int]) -> None:
    make, sizes = MODELS[name]
    model = adapted(make(), fit="nearest")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    reference = alone(model)
    if checkpointed:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    ids = torch.arange(10).view(2, 5)
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids.flip(1)} if name == "t5" else {})}
    for step in range(2):
        together.clear()
        found = {}
        for kind, net in (("grouped", model), ("alone", reference)):
            net.zero_grad()
            net(**inputs).last_hidden_state.square().sum().backward()
            found[kind] = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        # Activation checkpointing hooks saved tensors: layers are then computed one by one.
        assert sorted(together) == ([] if checkpointed else sorted(sizes)), step
        same(found["grouped"], found["alone"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_precisions_match_those_of_layers_computed_alone(
    dtype: torch.dtype, autocast: bool, together: list[int]
) -> None:
    model = adapted()
    model.base_model.model.to(dtype)
    x = X.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, expected = gradients(model, x), gradients(alone(model), x)
    assert together == [3]
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in expected.items()}
    coarse = dtype != torch.float32 or autocast
    same(found, expected, rtol=5e-2 if coarse else 1e-5, atol=0.3 if coarse else 1e-5)


def test_a_backward_pass_outside_of_autocast_keeps_the_forward_passs_precision() -> None:
    model = adapted()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(X)
    (y.double() * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)).sum().backward()
    outside = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.autocast("cpu", torch.bfloat16):
        inside = gradients(model, X)
    assert y.dtype == inside["y"].dtype == torch.bfloat16
    same(outside, {name: inside[name] for name in outside})


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_is_correct_when_a_layer_leaves_the_group(
    reentrant: bool,
) -> None:
    model = adapted()
    other = torch.randn_like(X)

    class Checkpointed(nn.Module):
        def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
            return checkpoint(model, x, other, use_reentrant=reentrant)

    net = Checkpointed()
    net.zero_grad = model.zero_grad  # type: ignore[method-assign]
    net.named_parameters = model.named_parameters  # type: ignore[method-assign]
    for second in (None, other, None):
        same(gradients(net, X, other=second), gradients(alone(model), X, other=second), rtol=1e-4, atol=1e-5)


def test_a_layer_that_sees_another_input_is_computed_from_it_and_leaves_the_group(together: list[int]) -> None:
    model, other = adapted(), torch.randn_like(X)
    for sizes in ([3], [2]):
        together.clear()
        same(gradients(model, X, other=other), gradients(alone(model), X, other=other), rtol=1e-4, atol=1e-5)
        assert together == sizes


def test_a_layer_that_is_not_called_leaves_the_group_and_has_no_gradient(together: list[int]) -> None:
    model = adapted()
    net = model.base_model.model
    for sizes in ([3], []):
        together.clear()
        net.q_proj(X).sum().backward()
        assert together == sizes
        assert net.k_proj.cdka_A["default"].grad is None
        model.zero_grad()
    assert model(X).isfinite().all()


CHANGES: dict[str, Callable[[Any, Tensor], object]] = {
    "the input": lambda net, x: x.add_(1.0),
    "a factor": lambda net, x: net.k_proj.cdka_A["default"].mul_(2.0),
    "the frozen weight": lambda net, x: net.k_proj.base_layer.weight.mul_(2.0),
    "the scale": lambda net, x: net.k_proj.scale_layer(0.5),
    "whether it is on": lambda net, x: net.k_proj.enable_adapters(False),
    "a hook on the frozen layer": lambda net, x: net.k_proj.base_layer.register_forward_hook(lambda m, i, o: o * 3.0),
    "merging": lambda net, x: net.k_proj.merge(),
    "dropout": lambda net, x: net.k_proj.cdka_dropout.update({"default": nn.Dropout(1.0)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_between_the_calls_of_two_layers_take_effect(change: str) -> None:
    model = adapted()
    expected, found = alone(model).base_model.model, model.base_model.model
    outputs = []
    for net in (expected, found):
        x = X.clone()
        net.q_proj(x)
        with torch.no_grad():
            CHANGES[change](net, x)
        outputs.append(net.k_proj(x))
    torch.testing.assert_close(outputs[1], outputs[0])


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"r2_pattern": {"k_proj": 8}}, 2),
        ({"rank_pattern": {"v_proj": 64}}, 2),  # too large to expand
        ({"target_modules": ["q_proj", "v_proj"]}, 2),
        ({"r1_pattern": {"k_proj": 1}, "alpha_pattern": {"v_proj": 3.0}}, 3),
        ({"dropout": 0.1}, 0),
        ({"r": 64}, 0),
    ],
)
def test_only_layers_with_the_same_input_blocks_are_computed_together(
    changes: dict[str, Any], size: int, together: list[int]
) -> None:
    model = adapted(**changes)
    if "dropout" not in changes:
        same(gradients(model, X), gradients(alone(model), X), rtol=1e-4, atol=1e-4)
    else:
        gradients(model, X)
    assert together == ([size] if size else [])


def test_frozen_adapters_and_inference_are_computed_layer_by_layer(together: list[int]) -> None:
    model = adapted()
    model.base_model.model.k_proj.cdka_B["default"].requires_grad_(False)
    gradients(model, X)
    assert together == [2]
    together.clear()
    with torch.no_grad():
        model(X)
    with torch.inference_mode():
        model(X)
    assert together == []


def test_a_precomputed_output_is_not_used_after_a_backward_pass() -> None:
    net = adapted().base_model.model
    net.q_proj(X).sum().backward()
    net.k_proj(X).sum().backward()
    reference = alone(adapted()).base_model.model
    reference.k_proj(X).sum().backward()
    torch.testing.assert_close(net.k_proj.cdka_A["default"].grad, reference.k_proj.cdka_A["default"].grad)


def test_copies_are_computed_layer_by_layer(together: list[int]) -> None:
    model = adapted()
    expected = gradients(model, X)
    assert together == [3]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.base_model.model.q_proj.group is None
        same(gradients(other, X), expected, rtol=1e-4, atol=1e-5)
    assert together == [3]
    assert "group" not in "".join(model.state_dict())


def test_a_checkpointed_region_does_not_use_outputs_computed_outside_of_it() -> None:
    results = []
    for model in (adapted(), alone(adapted())):
        net = model.base_model.model
        x = X.clone().requires_grad_()
        q = net.q_proj(x)
        rest = checkpoint(
            lambda x, net=net: torch.cat([net.k_proj(x), net.v_proj(x)], -1).square(), x, use_reentrant=False
        )
        (q.sum() + rest.sum()).backward()
        y = checkpoint(net, x, use_reentrant=False)
        z = net(x, torch.ones_like(x))  # k leaves the group before y's backward pass
        (y.sum() + z.sum()).backward()
        results.append([x.grad, *(p.grad for p in net.parameters() if p.grad is not None)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(0, D), (0, 7, D), (5, 0, D), (D,)])
def test_empty_batches_and_single_vectors_are_computed(shape: tuple[int, ...], together: list[int]) -> None:
    model = adapted()
    found, expected = gradients(model, torch.ones(shape)), gradients(alone(model), torch.ones(shape))
    assert together == [3]
    same(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", [True, False])
def test_an_output_of_another_precision_is_not_reused(first: bool) -> None:
    net = adapted().base_model.model
    with torch.autocast("cpu", torch.bfloat16, enabled=first):
        q = net.q_proj(X)
    with torch.autocast("cpu", torch.bfloat16, enabled=not first):
        k = net.k_proj(X)
    assert {q.dtype, k.dtype} == {torch.bfloat16, torch.float32}


def test_a_failed_pass_frees_its_graph_and_keeps_the_group(together: list[int]) -> None:
    model = adapted()
    kept = []

    def fail(x: Tensor) -> None:
        raise RuntimeError("between two layers")

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept.append(weakref.ref(x))
            fail(x)
            return x

    net = model.base_model.model
    forward = net.forward
    net.forward = lambda x: Failing()(net.q_proj(x * 2.0 + 0.0)) if x.requires_grad else forward(x)
    with pytest.raises(RuntimeError, match="between"):
        model(X.clone().requires_grad_())
    del net.forward
    assert kept[0]() is None, "the output of the pass that failed is still alive"
    together.clear()
    gradients(model, X)
    assert together == [3]


def test_a_model_that_is_dropped_is_freed_without_the_garbage_collector() -> None:
    model = adapted()
    gradients(model, X)
    weight = weakref.ref(model.base_model.model.q_proj.base_layer.weight)
    gc.disable()
    try:
        del model
        assert weight() is None
    finally:
        gc.enable()


def test_layers_of_other_widths_and_sharded_layers_are_computed_alone() -> None:
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj = nn.Linear(32, 16), nn.Linear(64, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.q_proj(x) + self.k_proj(torch.cat([x, x], -1))

    model = adapted(Uneven(), r2_pattern={"k_proj": 8})
    same(gradients(model, X), gradients(alone(model), X), rtol=1e-4, atol=1e-4)

    model = adapted()
    net = model.base_model.model
    whole = net.k_proj.base_layer.weight.data
    net.k_proj.base_layer.weight.data = torch.empty(0)  # sharded: gathered only while the layer is called
    net.k_proj.register_forward_pre_hook(lambda m, _: setattr(m.base_layer.weight, "data", whole))
    found = net.q_proj(X), net.k_proj(X)
    reference = alone(adapted()).base_model.model
    torch.testing.assert_close(found, (reference.q_proj(X), reference.k_proj(X)), rtol=1e-4, atol=1e-5)


def test_shared_factors_are_counted_once_in_double_backward() -> None:
    model = adapted(r1=1)
    net = model.base_model.model
    net.k_proj.cdka_A["default"] = net.q_proj.cdka_A["default"]
    A = net.q_proj.cdka_A["default"]
    found = [
        torch.autograd.grad(net.q_proj(X).sum() + net.k_proj(X).sum(), A, create_graph=recorded)[0]
        for recorded in (False, True)
    ]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda net, x: x.requires_grad_(),
        lambda net, x: net.k_proj.requires_grad_(False),
        lambda net, x: setattr(net.k_proj.base_layer.weight, "data", net.k_proj.base_layer.weight.data * 2),
    ],
)
def test_changes_of_requires_grad_and_replaced_data_take_effect(change: Callable[[Any, Tensor], object]) -> None:
    outputs = []
    for model in (adapted(), alone(adapted())):
        net, x = model.base_model.model, X.clone()
        net.q_proj(x)
        change(net, x)
        outputs.append(net.k_proj(x))
    assert outputs[0].requires_grad == outputs[1].requires_grad
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_threads_do_not_use_each_others_outputs() -> None:
    net = adapted().base_model.model
    reference = alone(adapted()).base_model.model
    failures: list[BaseException] = []

    def run(seed: int) -> None:
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(seed)
        try:
            for _ in range(50):
                x = torch.randn(3, D, generator=generator)
                torch.testing.assert_close(net(x), reference(x), rtol=1e-4, atol=1e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_second_backward_pass_through_a_group_raises() -> None:
    """As for any node. A pass from query and then one from key count as two passes."""
    net = adapted().base_model.model
    q, k = net.q_proj(X), net.k_proj(X)
    q.sum().backward(retain_graph=True)
    k.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        q.sum().backward()


def test_outputs_may_be_changed_in_place() -> None:
    model = adapted()
    net = model.base_model.model
    q, k = net.q_proj(X), net.k_proj(X)
    q += 1.0
    k.mul_(2.0)
    (q.sum() + k.sum()).backward()
    reference = alone(adapted()).base_model.model
    (reference.q_proj(X).sum() + 2 * reference.k_proj(X).sum()).backward()
    torch.testing.assert_close(net.k_proj.cdka_A["default"].grad, reference.k_proj.cdka_A["default"].grad)


def step_under_distributed_data_parallel(store: str) -> None:
    """Compare two steps with those of layers computed alone. Exits with 0 if they are equal."""
    sizes: list[int] = []
    original = groups.grouped
    groups.grouped = lambda x, layers, *more: (sizes.append(len(layers)), original(x, layers, *more))[1]
    model = adapted()
    expected = gradients(alone(model), X)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    net = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        found = gradients(net, X)
    assert sizes == [3, 3]
    same({n.removeprefix("module."): t for n, t in found.items()}, expected, rtol=1e-4, atol=1e-5)
    # Skip destructors: gloo's destructor joins a thread that may wait for the interpreter's lock.
    os._exit(0)


def test_a_step_under_distributed_data_parallel_equals_one_without(tmp_path: Path) -> None:
    program = f"from tests.cdka.test_groups import *; step_under_distributed_data_parallel({str(tmp_path / 'store')!r})"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
