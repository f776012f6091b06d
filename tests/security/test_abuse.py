"""One caller does not stop the service: patterns, sizes, bodies and numbers that grow without bound."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.conftest import Api, make_study
from workers.failures import Rejected
from workers.tasks.answers import extract

SLOW = r"(([a-z.0-9_]|[a-z0-9._])+)+!"


def timed(call: Any) -> tuple[Any, float]:
    started = time.monotonic()
    return call(), time.monotonic() - started


def prediction(**adapter: Any) -> dict[str, Any]:
    return {"model": {"path": "tiny-bert"}, "adapter": adapter, "budget": {"lora_rank": 4}}


@pytest.mark.parametrize("role", ["viewer", "member"])
def test_a_pattern_that_backtracks_for_ever_is_answered_at_once(api: Api, role: str) -> None:
    answer, seconds = timed(lambda: api.call("POST", "/predictions", role, json=prediction(target_modules=SLOW)))
    assert answer.status_code == 422
    assert "matches no module; linear layers are named: " in answer.text
    assert seconds < 30


def test_a_pattern_selects_what_it_matches_as_a_whole(api: Api) -> None:
    answer = api.call("POST", "/predictions", json=prediction(target_modules=r".*\.(query|value)"))
    assert answer.status_code == 200, answer.text
    study = api.create(adapter={"target_modules": r".*\.(query|value)"}, search={"trials": 1})
    assert study["budget"]["adapted_layers"] == 4
    lease = api.lease()
    assert lease is not None
    assert {layer["name"].rsplit(".", 1)[1] for layer in lease["trial"]["layers"]} == {"query", "value"}


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (r"(?=query)", "which has no look-around or back-references: invalid perl operator"),
        (r"(a)\1", "invalid escape sequence"),
        (r"(unclosed", "missing )"),
        (r"((a{1000}){1000}){1000}", "invalid repetition size"),
    ],
)
def test_a_pattern_that_cannot_be_matched_in_linear_time_is_refused(api: Api, pattern: str, told: str) -> None:
    found = api.call("POST", "/studies", json=make_study(adapter={"target_modules": pattern})).json()["errors"]
    (fault,) = [f for f in found if f["pointer"] == "#/adapter/target_modules"]
    assert told in fault["detail"]


def test_an_answers_pattern_is_refused_at_submit_and_matched_in_linear_time(api: Api) -> None:
    from service.schemas.specs import GenerationSpec

    task = {
        "kind": "causal_lm",
        "columns": {"prompt": "text", "completion": "label"},
        "generation": {"extractor": "regex", "pattern": r"(?<=x)y"},
    }
    found = api.call("POST", "/studies", json=make_study(task=task)).json()["errors"]
    assert "#/task/generation/pattern" in {f["pointer"] for f in found}
    generation = GenerationSpec(extractor="regex", pattern=SLOW)
    answer, seconds = timed(lambda: extract("a.b_" * 20_000, generation))
    assert answer is None
    assert seconds < 10
    with pytest.raises(Rejected, match=r"task\.generation\.pattern: not a regular expression of RE2"):
        extract("xy", GenerationSpec(extractor="regex", pattern=r"(?<=x)y"))
