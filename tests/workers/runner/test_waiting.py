"""Trials that successive halving holds: continued from their checkpoints, they equal uninterrupted ones."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import Api
from workers.runner.runner import Runner

from ..helpers import LONG, SPACE, weights

SPACE_OF_RATES = {**SPACE, "learning_rate": {"choices": [1e-4, 5e-4, 1e-3, 5e-3, 1e-2]}}


@pytest.mark.parametrize("by", ["epochs", "steps"])
def test_a_search_with_promotions_equals_one_without_a_pruner(api: Api, runner: Runner, by: str) -> None:
    """Four trials, of which two complete: those that wait and are promoted train bit for bit like all others."""
    training = LONG if by == "epochs" else {**LONG, "eval_steps": 3}
    asha = {"sampler": "grid", "trials": 4, "pruner": "asha", "pruner_options": {"reduction_factor": 2}, "finished": 2}
    options = {"training": training, "search_space": SPACE_OF_RATES}
    whole = api.create(**options, search={**asha, "pruner": "none", "pruner_options": {}})
    held = api.create(**options, search=asha)
    while (lease := runner._next_lease()) is not None:
        runner.run_lease(lease)
    ours, theirs = (api.call("GET", f"/studies/{s['id']}/trials").json()["items"] for s in (held, whole))
    assert {t["state"] for t in theirs} == {"completed"}
    completed = [t["number"] for t in ours if t["state"] == "completed"]
    assert len(completed) >= 2
    assert {t["state"] for t in ours if t["number"] not in completed} <= {"pruned"}
    assert max(t["attempts"] for t in ours) > 1
    for number in completed:
        assert ours[number]["params"] == theirs[number]["params"]
        assert ours[number]["metrics"] == theirs[number]["metrics"]
        mine, other = (weights(t[number]["artifact"]) for t in (ours, theirs))
        assert all(torch.equal(mine[k], other[k]) for k in mine)
    for number in range(4):
        curves = [
            [
                m
                for m in api.call("GET", f"/trials/{t[number]['id']}/metrics").json()["items"]
                if m["name"] == "accuracy"
            ]
            for t in (ours, theirs)
        ]
        same = zip(*[[(m["step"], m["value"]) for m in curve] for curve in curves], strict=False)
        assert all(a == b for a, b in same)
        assert 1 <= len(curves[0]) <= len(curves[1])
    gone = [t for t in ours if t["state"] == "pruned"]
    assert all(t["resources"]["steps"] < 15 for t in gone)
