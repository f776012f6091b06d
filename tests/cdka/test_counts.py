"""Counts, feasibility and predictors on shapes alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import cdka
from cdka.predictors.alignment import expected_cosine


def square(d: int, layers: int = 4) -> list[cdka.ModuleShape]:
    return [cdka.ModuleShape(f"layer.{k}", d, d) for k in range(layers)]


def bert_shaped(d: int) -> list[cdka.ModuleShape]:
    return [*square(d), cdka.ModuleShape("up", d, 4 * d), cdka.ModuleShape("down", 4 * d, d)]


def llama_shaped(d: int) -> list[cdka.ModuleShape]:
    grouped = [cdka.ModuleShape("k", d, d // 4), cdka.ModuleShape("v", d, d // 4)]
    inner = 11 * d // 4 // 128 * 128
    wide = [cdka.ModuleShape("gate", d, inner), cdka.ModuleShape("up", d, inner), cdka.ModuleShape("down", inner, d)]
    return [*square(d, 2), *grouped, *wide]


dimensions = st.sampled_from([64, 96, 128, 384, 768])
shape_sets = st.lists(st.tuples(dimensions, dimensions), min_size=1, max_size=4).map(
    lambda pairs: [cdka.ModuleShape(f"l{k}", a, b) for k, (a, b) in enumerate(pairs)]
)


@given(shapes=shape_sets, budget=st.integers(1, 40_000))
@settings(max_examples=80, deadline=None)
def test_nothing_infeasible_is_returned_and_a_low_budget_names_the_smallest_cost(
    shapes: list[cdka.ModuleShape], budget: int
) -> None:
    try:
        found = cdka.feasible(shapes, budget)
    except cdka.BudgetError as error:
        smallest = int(str(error).rsplit(" ", 1)[-1])
        assert smallest > budget
        assert min(c.parameters for c in cdka.feasible(shapes, smallest)) == smallest
        return
    for c in found:
        assert c.parameters <= budget
        assert c.parameters == cdka.count_parameters(shapes, *c.structure)
        assert all(s.d_out % c.r1 == 0 and s.d_in % c.r2 == 0 for s in shapes)
    for predictor in cdka.FROM_BUDGET:
        ranked = cdka.predict(shapes, budget, predictor)
        assert sorted(p.configuration for p in ranked) == sorted(found)
        assert [p.score for p in ranked] == sorted((p.score for p in ranked), reverse=True)
        assert all(p.reason for p in ranked)


@given(shapes=shape_sets)
@settings(max_examples=40, deadline=None)
def test_the_guideline_returns_its_default_at_the_cost_of_the_default(shapes: list[cdka.ModuleShape]) -> None:
    assume(all(s.d_in < 32 * s.d_out for s in shapes))
    best = cdka.predict(shapes, cdka.count_parameters(shapes, 2, 8, 4))[0]
    assert best.configuration.structure == (2, 8, 4)


@pytest.mark.parametrize("d", [384, 768, 2048, 4096])
@pytest.mark.parametrize("family", [bert_shaped, llama_shaped])
def test_the_guideline_at_the_cost_of_lora_rank_8_is_2_4_6(d: int, family: type) -> None:
    shapes = family(d)
    assert cdka.predict(shapes, cdka.count_lora_parameters(shapes, 8))[0].configuration.structure == (2, 4, 6)


def test_the_guideline_explains_why_r1_is_not_2() -> None:
    shapes = [cdka.ModuleShape("odd", 64, 63)]
    best = cdka.predict(shapes, 5_000)[0]
    assert best.configuration.r1 == 1
    assert "r1 = 1 is preferred" in best.reason


@pytest.mark.parametrize(
    ("d", "structure"),
    [(192, s) for s in [(1, 1, 8), (2, 8, 4), (4, 2, 3), (2, 4, 6), (1, 16, 1), (4, 16, 12), (2, 16, 8), (1, 4, 32)]]
    # D = r1*d/r2 is 2, 4, 8 and 12: as many directions as dimensions, and more
    + [(16, (1, 8, 2)), (16, (2, 8, 3)), (32, (4, 16, 8)), (48, (1, 4, 16))],
)
def test_alignment_agrees_with_simulation(d: int, structure: tuple[int, int, int]) -> None:
    """One step of gradient descent from B = 0 moves dW by the rearranged gradient projected on the A's."""
    r1, r2, r = structure
    generator = torch.Generator().manual_seed(0)
    cosines = []
    for _ in range(12 if d > 100 else 2000):
        gradient = torch.randn(d * r2 // r1, r1 * d // r2, generator=generator)
        directions = 2 * torch.rand(r, r1 * d // r2, generator=generator) - 1  # the shape of Kaiming-uniform
        update = gradient @ directions.T @ directions
        cosines.append(float((update * gradient).sum() / update.norm() / gradient.norm()))
    mean = sum(cosines) / len(cosines)
    assert expected_cosine(d, r1, r2, r) == pytest.approx(mean, rel=0.03)


def test_rank_bound_is_reached_by_random_factors() -> None:
    for d_in, d_out, r1, r2, r in [
        (12, 8, 2, 3, 1),
        (12, 12, 2, 2, 2),
        (16, 8, 4, 4, 1),
        (8, 16, 1, 1, 3),
        (6, 6, 3, 3, 4),
    ]:
        shape = cdka.ModuleShape("l", d_in, d_out)
        A = torch.randn(r, r1, d_in // r2, dtype=torch.float64)
        B = torch.randn(r, d_out // r1, r2, dtype=torch.float64)
        rank = int(torch.linalg.matrix_rank(cdka.kron_delta(A, B)))
        assert rank == cdka.rank_bound(shape, r1, r2, r)


def test_counts_name_the_layer_that_does_not_divide() -> None:
    shapes = [cdka.ModuleShape("encoder.0.query", 384, 384)]
    with pytest.raises(cdka.IndivisibleError, match=r"r2=7 does not divide d_in=384 of encoder.0.query; .*: 6, 8"):
        cdka.count_parameters(shapes, 2, 7, 4)
    with pytest.raises(cdka.IndivisibleError, match="r1=5 does not divide d_out=384"):
        cdka.feasible(shapes, 10**6, r1=5)
    with pytest.raises(cdka.CdkaError, match="at least one ModuleShape"):
        cdka.feasible([], 100)
    with pytest.raises(cdka.CdkaError, match="available: guideline, alignment"):
        cdka.predict(shapes, 10**6, "oracle")


def test_named_sizes_restrict_what_is_feasible() -> None:
    found = cdka.feasible(square(64), 10_000, r1=[1, 2], r2=4, r=range(1, 3))
    assert {c.structure for c in found} == {(1, 4, 1), (1, 4, 2), (2, 4, 1), (2, 4, 2)}
    assert math.isclose(found[0].parameters, 4 * (64 / 4 + 4 * 64))
