"""Predictions from measured gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config

import cdka
from cdka.gradients import leading_singular_values

from .helpers import Net, X

LAYERS = ["first", "second"]


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().sum()


def prepared(model: nn.Module) -> tuple[list[cdka.ModuleShape], list[cdka.Configuration]]:
    shapes = cdka.module_shapes(model, LAYERS)
    return shapes, cdka.feasible(shapes, 600, r1=[1, 2, 4], r2=[1, 2, 4, 8])


def test_scores_equal_the_shares_of_the_full_svd() -> None:
    model = Net()
    shapes, candidates = prepared(model)
    spectra = cdka.collect_spectra(model, [X[:3], X[3:]], shapes, candidates, loss)
    energy, total = dict.fromkeys(candidates, 0.0), 0.0
    for batch in (X[:3], X[3:]):
        twin = Net()
        loss(twin, batch).backward()
        for name in LAYERS:
            G = twin.get_submodule(name).weight.grad
            total += float(G.square().sum())
            for c in candidates:
                S = torch.linalg.svdvals(cdka.rearrange(G, c.r1, c.r2))
                energy[c] += float(S[: c.r].square().sum())
    ranked = cdka.predict(shapes, 600, "measured", candidates=candidates, spectra=spectra)
    assert len(ranked) == len(candidates)
    for prediction in ranked:
        assert prediction.score == pytest.approx(energy[prediction.configuration] / total, rel=1e-4)
    scores = [p.score for p in ranked]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < s <= 1 + 1e-6 for s in scores)
    assert "of the squared gradient norm" in ranked[0].reason
    assert ranked[0].rank_bound >= 1


def test_measuring_restores_the_model() -> None:
    model = Net()
    model.first.weight.requires_grad_(False)
    model.first.bias.grad = torch.ones(32)
    before = {n: (p.clone(), p.requires_grad) for n, p in model.named_parameters()}
    shapes, candidates = prepared(model)
    cdka.collect_spectra(model, [X], shapes, candidates, loss)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
    assert torch.equal(model.first.bias.grad, torch.ones(32))
    assert model.second.weight.grad is None


def test_only_one_layers_gradient_is_held_at_a_time() -> None:
    layers = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
    shapes = cdka.module_shapes(layers, ["0", "1", "2", "3", "4", "5"])
    held = []
    for layer in layers:
        # Called right after this layer's backward pass, when the gradients above are already measured and freed.
        layer.register_full_backward_hook(lambda *_: held.append(sum(m.weight.grad is not None for m in layers)))
    candidates = cdka.feasible(shapes, 2000, r1=2, r2=4)
    inputs = torch.randn(4, 16, requires_grad=True)
    cdka.collect_spectra(layers, [inputs], shapes, candidates, loss)
    assert len(held) == 6
    assert max(held) <= 1


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_the_randomised_svd_agrees_with_the_full_one(decay: float) -> None:
    make = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 300, generator=make)).Q for n in (400, 310))
    S = torch.arange(1, 301).float() ** -decay
    found = leading_singular_values((U * S) @ V.T, 8, make)
    torch.testing.assert_close(found, S[:8], rtol=0.03 if decay == 0.5 else 0.005, atol=0)


def test_a_transformers_model_is_measured_by_its_own_loss() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2)).eval()
    shapes = cdka.module_shapes(model, ["c_attn"], "causal_lm")
    candidates = cdka.feasible(shapes, 3000, r1=[1, 2], r2=[2, 4])
    ids = torch.arange(12).reshape(2, 6)
    spectra = cdka.collect_spectra(model, [{"input_ids": ids, "labels": ids}], shapes, candidates)
    model(input_ids=ids, labels=ids).loss.backward()
    expected = sum(float(model.get_submodule(s.name).weight.grad.square().sum()) for s in shapes)
    assert spectra.total == pytest.approx(expected, rel=1e-4)


def test_a_failed_measurement_is_explained() -> None:
    model = Net()
    shapes, candidates = prepared(model)
    with pytest.raises(cdka.CdkaError, match="needs spectra=cdka.collect_spectra"):
        cdka.predict(shapes, 600, "measured")
    with pytest.raises(cdka.AdapterError, match="at least one batch"):
        cdka.collect_spectra(model, [], shapes, candidates, loss)
    with pytest.raises(cdka.AdapterError, match="has no layer third"):
        cdka.collect_spectra(model, [X], [cdka.ModuleShape("third", 24, 32)], candidates, loss)
    with pytest.raises(cdka.AdapterError, match=r"first has a weight of shape \(32, 24\), not 32 x 32"):
        cdka.collect_spectra(model, [X], [cdka.ModuleShape("first", 32, 32)], candidates, loss)
    with pytest.raises(cdka.AdapterError, match="gradient of second is not finite"):
        cdka.collect_spectra(model, [X * float("nan")], shapes, candidates, loss)
    spectra = cdka.collect_spectra(model, [X], shapes, candidates[:1], loss)
    with pytest.raises(cdka.CdkaError, match=r"no spectrum was measured for \(r1, r2, r\)"):
        cdka.predict(shapes, 600, "measured", candidates=candidates, spectra=spectra)
