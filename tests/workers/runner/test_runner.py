"""A runner against the real application, with a real (tiny) model: what it trains, keeps, stores and survives."""

from __future__ import annotations

import json
import os
import resource
import shutil
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from service.errors import Unavailable
from service.schemas.leases import ResultIn
from tests.conftest import Api, sentences, write_lines
from workers.runner import results
from workers.runner.runner import Poisoned, Runner


def step(runner: Runner) -> Any:
    """Lease and run one trial. Returns the trial as it was leased."""
    lease = runner._next_lease()
    assert lease is not None
    runner.run_lease(lease)
    return lease.trial


def trials(api: Api, study: dict[str, Any]) -> list[dict[str, Any]]:
    return api.call("GET", f"/studies/{study['id']}/trials").json()["items"]  # type: ignore[no-any-return]


def test_a_trial_is_trained_reported_and_stored(api: Api, runner: Runner, data_root: Path) -> None:
    study = api.create(
        search={"trials": 1}, training={"epochs": 3}, search_space={"learning_rate": 5e-3, "r1": 2, "r2": 4}
    )
    step(runner)
    (trial,) = trials(api, study)
    assert trial["state"] == "completed"
    assert trial["metrics"].keys() == {"loss", "accuracy", "f1", "f1_positive", "matthews_correlation"}
    reported = api.call("GET", f"/trials/{trial['id']}/metrics").json()["items"]
    assert [m["step"] for m in reported if m["name"] == "accuracy"] == [5, 10, 15]  # 40 examples in batches of 8
    assert [m["value"] for m in reported if m["name"] == "accuracy"][-1] == trial["metrics"]["accuracy"]
    assert trial["resources"]["steps"] == 15
    assert trial["resources"]["data"]["train"] == "40 examples"
    adapter = Path(trial["artifact"])
    assert {"adapter_config.json", "adapter_model.safetensors", "cdka_task.json", "tokenizer.json"} <= {
        f.name for f in adapter.iterdir()
    }
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "CDKA"
    base = AutoModelForSequenceClassification.from_pretrained(data_root / "tiny-bert", num_labels=2)
    loaded = PeftModel.from_pretrained(base, adapter)
    assert any(p.abs().sum() > 0 for n, p in loaded.named_parameters() if "cdka_B" in n)


def test_a_warm_runner_trains_exactly_like_a_cold_one(api: Api, runner: Runner) -> None:
    """The third trial of a warm process equals, bit for bit, the first of a fresh one with the same configuration."""
    space = {"learning_rate": {"choices": [1e-3, 5e-3]}, "r1": {"choices": [1, 2]}}
    study = api.create(search={"trials": 3, "sampler": "random"}, search_space=space)
    for _ in range(3):
        step(runner)
    warm = trials(api, study)[2]
    assert trials(api, study)[2]["resources"]["swap_seconds"] < trials(api, study)[0]["resources"]["swap_seconds"]
    again = api.create(search={"trials": 3, "sampler": "random"}, search_space=space)
    for _ in range(2):
        lease = api.lease()
        assert lease is not None
        api.finish(lease)
    cold_runner = Runner(runner.client, runner.settings, "runner-2")
    step(cold_runner)
    cold = trials(api, again)[2]
    assert cold["params"] == warm["params"]
    assert cold["metrics"] == warm["metrics"]
    ours, theirs = _weights(cold["artifact"]), _weights(warm["artifact"])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def _weights(artifact: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(artifact) / "adapter_model.safetensors")


@pytest.mark.parametrize("method", ["cdka", "lora", "lokr"])
def test_a_warm_clone_begins_where_the_adapter_ended(api: Api, runner: Runner, method: str) -> None:
    """With a learning rate that changes nothing, it ends where it began: head and adapter are the stored ones."""
    study = api.create(
        search={"trials": 2, "concurrency": 1},
        training={"epochs": 2},
        search_space={"method": method, "learning_rate": 5e-3, "r1": 2, "r2": 4},
    )
    step(runner)
    source = trials(api, study)[0]
    body = {"from": source["id"], "params": {"learning_rate": 1e-12}, "warm": True}
    assert api.call("POST", f"/studies/{study['id']}/trials", json=body).status_code == 201
    step(runner)
    clone = trials(api, study)[1]
    assert clone["state"] == "completed", clone["failure"]
    assert clone["metrics"]["loss"] == pytest.approx(source["metrics"]["loss"], rel=1e-5)
    before, after = _weights(source["artifact"]), _weights(clone["artifact"])
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[k], after[k], atol=1e-6) for k in before)


def test_a_warm_clone_whose_adapter_is_gone_fails_alone(api: Api, runner: Runner) -> None:
    study = api.create(search={"trials": 2, "concurrency": 1, "retries": 0}, search_space={"r1": 2, "r2": 4})
    step(runner)
    source = trials(api, study)[0]
    assert api.call("POST", f"/studies/{study['id']}/trials", json={"from": source["id"], "warm": True}).is_success
    shutil.rmtree(source["artifact"])
    with pytest.raises(Poisoned):
        step(runner)
    clone = trials(api, study)[1]
    assert (clone["state"], clone["failure"]["kind"]) == ("failed", "error")
    assert "the adapter to start from is gone" in clone["failure"]["message"]
    assert api.call("GET", f"/studies/{study['id']}").json()["state"] == "completed"


def test_confirmations_are_judged_on_the_test_split_with_scores(api: Api, runner: Runner) -> None:
    study = api.create(
        search={"trials": 1},
        training={"epochs": 1},
        compare={"seeds": 1, "learning_rate": "shared", "baselines": ["lora", "krona"]},
    )
    searched = step(runner)
    assert searched.phase == "search"
    while (lease := runner._next_lease()) is not None:
        runner.run_lease(lease)
    confirmed = [t for t in trials(api, study) if t["phase"] == "confirmation"]
    assert {t["method"] for t in confirmed} == {"cdka", "lora", "krona"}
    assert all(t["state"] == "completed" for t in confirmed)
    with api.ctx.db.read() as session:
        from service.db.trial_columns import TrialColumns

        found = TrialColumns(session).scores(study["id"])
        for t in confirmed:
            scores = found[t["id"]]
            assert len(scores) == 20  # the test split
            assert sum(scores) / 20 == pytest.approx(t["metrics"]["accuracy"])


def test_every_method_trains_on_one_warm_model(api: Api, runner: Runner) -> None:
    """The same trial before and after the others gives the same weights: no method leaves a trace in the base model."""
    methods = ["cdka", "lora", "rslora", "dora", "miss", "lokr", "krona", "full"]
    one = {"r1": 2, "r2": 4, "r": 4, "alpha": 16, "learning_rate": 0.001}
    study = api.create(
        search={"trials": 10, "replicates": 2, "sampler": "grid"},
        search_space={**one, "method": {"choices": methods}, "dropout": 0.1},
        budget={"min_fill": 0},
        training={"epochs": 1},
    )
    for count in (9, 1):
        params = {**one, "dropout": 0.1}
        assert api.call("POST", f"/studies/{study['id']}/trials", json={"params": params}).status_code == 201
        for _ in range(count):
            step(runner)
    done = trials(api, study)
    assert all(t["state"] == "completed" for t in done), [(t["method"], t["failure"]) for t in done]
    assert {t["method"] for t in done} == set(methods)
    kinds = {
        t["method"]: json.loads((Path(t["artifact"]) / "adapter_config.json").read_text())["peft_type"] for t in done
    }
    expected = {"dora": "LORA", "rslora": "LORA", "full": "LORA", "krona": "CDKA"}
    assert kinds == {m: expected.get(m, m.upper()) for m in methods}
    same = [_weights(t["artifact"]) for t in done if t["method"] == "cdka" and t["seed"] == done[0]["seed"]]
    assert len(same) >= 2
    assert done[-1]["method"] == "cdka"
    for name, value in same[0].items():
        assert all(torch.equal(value, other[name]) for other in same[1:])


def test_a_cancelled_study_stops_training_early(api: Api, runner: Runner) -> None:
    study = api.create(search={"trials": 1}, training={"epochs": 400})
    lease = runner._next_lease()
    assert lease is not None
    seen: list[int] = []
    original = runner.train_trial

    def cancel_at_first_report(trial: Any, task: Any, model: Any, prepared: Any, reports: Any, *rest: Any) -> Any:
        original_report = reports.report

        def reporting(at: int, metrics: dict[str, float]) -> None:
            if not seen:
                api.call("POST", f"/studies/{study['id']}/cancel")
            seen.append(at)
            original_report(at, metrics)

        reports.report = reporting
        return original(trial, task, model, prepared, reports, *rest)

    runner.train_trial = cancel_at_first_report
    runner.run_lease(lease)
    (trial,) = trials(api, study)
    assert trial["state"] == "cancelled"
    assert trial["resources"]["steps"] < 2000
    assert trial["artifact"] is None


def test_a_non_finite_loss_is_infeasible_and_keeps_the_runner(api: Api, runner: Runner) -> None:
    study = api.create(search={"trials": 2}, search_space={"learning_rate": 1e30, "r1": 2, "r2": 4})
    step(runner)
    step(runner)
    for trial in trials(api, study):
        assert trial["state"] == "infeasible"
        assert trial["failure"]["kind"] == "diverged"
        assert "learning_rate" in trial["failure"]["message"]


def test_out_of_memory_is_infeasible_and_says_what_to_lower(api: Api, runner: Runner) -> None:
    study = api.create(search={"trials": 1})

    def explode(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    runner.train_trial = explode
    step(runner)
    (trial,) = trials(api, study)
    assert (trial["state"], trial["failure"]["kind"]) == ("infeasible", "out_of_memory")
    assert "training.batch_size" in trial["failure"]["message"]


def test_running_out_of_host_memory_is_infeasible_and_keeps_the_runner(api: Api, runner: Runner) -> None:
    study = api.create(search={"trials": 2, "sampler": "random"})
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = psutil.Process().memory_info().vms

    def train_in_little_memory(*args: Any) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, hard))
        try:
            torch.empty(2**33)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    trained, runner.train_trial = runner.train_trial, train_in_little_memory
    step(runner)
    runner.train_trial = trained
    step(runner)
    first, second = trials(api, study)
    assert (first["state"], first["failure"]["kind"]) == ("infeasible", "out_of_memory")
    assert second["state"] == "completed"


def test_an_exception_in_user_code_is_retried_in_a_fresh_process(api: Api, runner: Runner) -> None:
    study = api.create(search={"trials": 1, "retries": 1})

    def explode(trial: Any, task: Any, model: Any, prepared: Any, reports: Any, *rest: Any) -> None:
        reports.progress(1, 1)
        raise KeyError("loss")

    runner.train_trial = explode
    with pytest.raises(Poisoned):
        step(runner)
    assert trials(api, study)[0]["state"] == "queued"
    step(Runner(runner.client, runner.settings, "runner-2"))
    assert trials(api, study)[0]["state"] == "completed"


def test_an_exception_before_the_first_step_of_a_study_ends_it_once(api: Api, runner: Runner) -> None:
    study = api.create(search={"trials": 3, "retries": 2})

    def explode(*args: Any) -> None:
        raise ValueError("images of 3 channels were expected")

    runner.train_trial = explode
    with pytest.raises(Poisoned):
        step(runner)
    read = api.call("GET", f"/studies/{study['id']}").json()
    assert (read["state"], len(trials(api, study))) == ("failed", 1)
    assert read["reason"].endswith("training cannot start: images of 3 channels were expected")
    assert "ValueError" not in read["reason"]


def test_the_last_output_of_a_failed_trial_is_in_its_log(api: Api, runner: Runner) -> None:
    study = api.create(search={"trials": 1, "retries": 0})

    def explode(*args: Any) -> None:
        os.write(2, b"these are the last words\n")
        raise KeyError("loss")

    runner.train_trial = explode
    with pytest.raises(Poisoned):
        step(runner)
    (trial,) = trials(api, study)
    assert trial["state"] == "failed"
    log = api.call("GET", f"/trials/{trial['id']}/logs").json()
    assert "these are the last words\n" in log["text"]
    assert log["running"] is False


def test_changed_base_weights_end_the_runner_and_requeue_the_trial(api: Api, runner: Runner) -> None:
    study = api.create(search={"trials": 2, "retries": 1})
    original = runner.train_trial

    def corrupt(trial: Any, task: Any, model: Any, *rest: Any) -> Any:
        outcome = original(trial, task, model, *rest)
        with torch.no_grad():
            # One bit of one weight.
            weight = model.get_base_model().bert.embeddings.word_embeddings.weight
            weight.view(torch.int32)[0, 0] ^= 1
        return outcome

    runner.train_trial = corrupt
    with pytest.raises(Poisoned, match="base weights changed"):
        step(runner)
    assert trials(api, study)[0]["state"] == "queued"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": "x"}] * 20, "has 1 class"),
        (sentences(4), "too few to carve out"),
    ],
)
def test_data_that_cannot_be_used_fails_the_study_with_the_reason(
    api: Api, runner: Runner, data_root: Path, rows: list[dict[str, Any]], message: str
) -> None:
    write_lines(data_root / "bad.jsonl", rows)
    dataset = {"path": "json", "data_files": {"train": "bad.jsonl"}}
    study = api.create(task={"dataset": dataset}, search={"trials": 3})
    step(runner)
    read = api.call("GET", f"/studies/{study['id']}").json()
    assert read["state"] == "failed"
    assert message in read["reason"]


def test_missing_splits_are_carved_out_and_reported(api: Api, runner: Runner, data_root: Path) -> None:
    write_lines(data_root / "all.jsonl", sentences(50))
    dataset = {"path": "json", "data_files": {"train": "all.jsonl"}}
    study = api.create(task={"dataset": dataset}, search={"trials": 1})
    step(runner)
    origins = trials(api, study)[0]["resources"]["data"]
    assert origins == {
        "train": "32 examples",
        "validation": "8 examples carved out of train (seed 0)",
        "test": "10 examples carved out of train (seed 0)",
    }


def test_an_unknown_label_outside_of_training_is_rejected(api: Api, runner: Runner, data_root: Path) -> None:
    write_lines(data_root / "odd-validation.jsonl", [{"text": "goal", "label": "weather"}])
    files = {"train": "train.jsonl", "validation": "odd-validation.jsonl", "test": "test.jsonl"}
    study = api.create(task={"dataset": {"path": "json", "data_files": files}}, search={"trials": 1})
    step(runner)
    reason = api.call("GET", f"/studies/{study['id']}").json()["reason"]
    assert "column 'label' has a label that train lacks in 1 row (1): 'weather'" in reason


def test_a_lost_lease_ends_training_and_sends_no_result(api: Api, runner: Runner, clock: Any) -> None:
    study = api.create(search={"trials": 1}, training={"epochs": 300})
    lease = runner._next_lease()
    assert lease is not None
    clock.advance(61)
    other = api.lease("other")
    assert other is not None
    runner.run_lease(lease)
    (trial,) = trials(api, study)
    assert trial["state"] == "running"
    assert api.finish(other, value=0.25).status_code == 200
    assert trials(api, study)[0]["metrics"] == {"accuracy": 0.25}


def test_a_released_runner_returns_its_trial_to_the_queue(api: Api, runner: Runner) -> None:
    study = api.create(search={"trials": 1, "retries": 0}, training={"epochs": 400})
    lease = runner._next_lease()
    assert lease is not None
    threading.Timer(1.0, runner.release).start()
    runner.run_lease(lease)
    (trial,) = trials(api, study)
    assert trial["state"] == "queued"
    assert trial["failure"] is None
    runner.run()  # returns at once: it takes no further trial


def test_results_and_last_reports_survive_an_outage(api: Api, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    study = api.create(search={"trials": 1}, training={"epochs": 2})
    lease = runner._next_lease()
    assert lease is not None
    monkeypatch.setattr(results, "RETRY_SECONDS", 0.05)
    calls = []
    report, finish = runner.client.report, runner.client.finish

    def away(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) < 6:
            raise Unavailable("away")
        return (finish if isinstance(arguments[1], ResultIn) else report)(*arguments)

    monkeypatch.setattr(runner.client, "report", away)
    monkeypatch.setattr(runner.client, "finish", away)
    runner.run_lease(lease)
    (trial,) = trials(api, study)
    assert trial["state"] == "completed"
    reported = api.call("GET", f"/trials/{trial['id']}/metrics").json()["items"]
    assert {m["step"] for m in reported} == {5, 10}


@pytest.mark.parametrize("missing", ["leaving.jsonl", "leaving-bert"])
def test_missing_models_or_data_fail_the_study_and_are_named(
    api: Api, runner: Runner, data_root: Path, missing: str
) -> None:
    """The server had the files at submit; the runner does not have them."""
    shutil.copy(data_root / "train.jsonl", data_root / "leaving.jsonl")
    shutil.copytree(data_root / "tiny-bert", data_root / "leaving-bert", dirs_exist_ok=True)
    data = {"path": "json", "data_files": {"train": "leaving.jsonl"}}
    task = {"kind": "sequence_classification", "dataset": data}
    study = api.create(search={"trials": 3}, task=task, model={"path": "leaving-bert"})
    path = data_root / missing
    path.unlink() if path.is_file() else shutil.rmtree(path)
    step(runner)
    ended = api.call("GET", f"/studies/{study['id']}").json()
    assert ended["state"] == "failed"
    assert missing in ended["reason"]
    (trial,) = trials(api, study)
    assert trial["failure"]["kind"] == "rejected"
