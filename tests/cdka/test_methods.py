"""Other methods at CDKA's budgets: sizes, and counts against PEFT's own layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn

import cdka
from service.schemas.specs import AdapterSpec, LayerShape
from workers.training.adapters import adapter_config, freeze_biases, require_planned

OTHERS = [m for m in cdka.METHODS if m not in ("cdka", "full")]


class Net(nn.Module):
    """Layers of unequal sides, among them a prime one and one that is wider than high."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.tall, self.odd = nn.Linear(64, 24), nn.Linear(24, 96), nn.Linear(96, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.odd(self.tall(self.wide(x)))  # type: ignore[no-any-return]


def shapes_of(net: nn.Module) -> list[cdka.ModuleShape]:
    return [
        cdka.ModuleShape(n, m.in_features, m.out_features) for n, m in net.named_modules() if isinstance(m, nn.Linear)
    ]


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("budget", [700, 1500, 4000])
def test_a_count_is_that_of_the_real_adapter_and_within_the_budget(method: str, budget: int) -> None:
    net = Net()
    shapes = shapes_of(net)
    found = cdka.size_in_budget(method, shapes, budget)
    assert found.parameters <= budget
    # A single product has few sizes to choose from.
    assert method == "krona" or found.parameters > 0.6 * budget
    layers = [LayerShape(name=s.name, d_in=s.d_in, d_out=s.d_out) for s in shapes]
    params: dict[str, Any] = {**found.sizes, "alpha": 16.0}
    model: Any = get_peft_model(net, adapter_config(method, params, layers, AdapterSpec(dropout=0.1), None))  # type: ignore[arg-type]
    require_planned(model, method, params, layers)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == found.parameters
    x = torch.randn(5, 64)
    with model.disable_adapter():
        base = model(x)
    torch.testing.assert_close(model.eval()(x), base, atol=1e-5, rtol=1e-5, msg="training starts at the base model")
    model.train()(x).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


def test_full_fine_tuning_trains_copies_of_the_layers_without_their_biases() -> None:
    net = Net()
    shapes = shapes_of(net)[:2]
    size = cdka.size_in_budget("full", shapes, 100)
    assert (size.sizes, size.parameters) == ({}, 64 * 24 + 24 * 96)
    layers = [LayerShape(name=s.name, d_in=s.d_in, d_out=s.d_out) for s in shapes]
    model: Any = get_peft_model(net, adapter_config("full", {}, layers, AdapterSpec(), None))  # type: ignore[arg-type]
    freeze_biases(model, layers)
    require_planned(model, "full", {}, layers)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == size.parameters
    x = torch.randn(5, 64)
    before = model(x).detach()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    model(x).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(model(x), before)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), before, msg="the base keeps its weights")


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from([m for m in OTHERS if m != "krona"]),
    sides=st.lists(st.tuples(st.integers(4, 96), st.integers(4, 96)), min_size=1, max_size=4),
    budget=st.integers(1, 20_000),
)
def test_the_largest_within_a_budget_or_the_least_cost(method: str, sides: list[tuple[int, int]], budget: int) -> None:
    shapes = [cdka.ModuleShape(f"l{k}", a, b) for k, (a, b) in enumerate(sides)]
    try:
        found = cdka.size_in_budget(method, shapes, budget)
    except cdka.BudgetError as error:
        least = int(str(error).split("at least ")[1].split(" ")[0].replace(",", ""))
        assert least > budget
        assert cdka.size_in_budget(method, shapes, least).parameters == least
        return
    assert found.parameters == cdka.count_method_parameters(method, shapes, found.sizes) <= budget
    if method in ("lora", "rslora", "dora"):
        assert cdka.count_method_parameters(method, shapes, {"r": found.sizes["r"] + 1}) > budget


def test_unknown_methods_are_named() -> None:
    with pytest.raises(cdka.CdkaError, match="available: cdka, krona, lora"):
        cdka.count_method_parameters("adalora", shapes_of(Net()), {"r": 1})
    with pytest.raises(cdka.CdkaError, match="see feasible"):
        cdka.size_in_budget("cdka", shapes_of(Net()), 1000)
