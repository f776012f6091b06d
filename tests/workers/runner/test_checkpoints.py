"""Checkpoints are complete or absent, resume bit for bit, and are removed when no longer needed."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from service.server.maintenance import collect_checkpoints
from tests.conftest import Api, write_lines
from workers.runner import runner as runner_module
from workers.runner.runner import Runner

from ..helpers import LONG, SPACE, checkpoint_of, only_trial, release_at, run, weights


@pytest.mark.parametrize("at", [7, 10])
def test_a_resumed_trial_equals_an_uninterrupted_one(api: Api, runner: Runner, at: int) -> None:
    options = {"adapter": {"dropout": 0.1}, "training": LONG, "search": {"trials": 1}, "search_space": SPACE}
    whole = api.create(**options)
    run(runner)
    interrupted = api.create(**options)
    release_at(runner, at)
    run(runner)
    trial = only_trial(api, interrupted)
    assert (trial["state"], trial["attempts"]) == ("queued", 1)
    checkpoint = checkpoint_of(api, interrupted)
    assert checkpoint is not None
    assert checkpoint.endswith(f"/001-{at:08d}")
    second = Runner(runner.client, runner.settings, "runner-2")
    run(second)
    ended, expected = only_trial(api, interrupted), only_trial(api, whole)
    assert ended["state"] == "completed"
    assert ended["resources"]["resumed_from"] == checkpoint
    assert ended["metrics"] == expected["metrics"]
    ours, theirs = weights(ended["artifact"]), weights(expected["artifact"])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    evaluations = api.call("GET", f"/trials/{trial['id']}/metrics").json()["items"]
    assert [m["step"] for m in evaluations if m["name"] == "accuracy"] == [5, 10, 15]


def test_two_trainings_of_one_seed_are_identical(api: Api, runner: Runner) -> None:
    first, second = (api.create(search={"trials": 1}, search_space=SPACE) for _ in range(2))
    run(runner)
    run(Runner(runner.client, runner.settings, "runner-2"))
    ours, theirs = (weights(only_trial(api, s)["artifact"]) for s in (first, second))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_full_disk_loses_a_checkpoint_but_no_training(
    api: Api, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = api.create(training=LONG, search={"trials": 1}, search_space=SPACE)
    files = fsspec.filesystem("file")
    put = type(files).put

    def full(self: Any, source: str, target: str, **kwargs: Any) -> None:
        if "/checkpoints/" in target:
            Path(target).mkdir(parents=True)
            (Path(target) / "half").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, source, target, **kwargs)

    monkeypatch.setattr(type(files), "put", full)
    run(runner)
    assert only_trial(api, study)["state"] == "completed"
    assert checkpoint_of(api, study) is None
    left = list(Path(api.ctx.settings.artifacts_url).rglob("checkpoints/*"))
    assert left == []


def test_a_missing_checkpoint_restarts_the_trial(api: Api, runner: Runner) -> None:
    study = api.create(training=LONG, search={"trials": 1}, search_space=SPACE)
    release_at(runner, 7)
    run(runner)
    checkpoint = checkpoint_of(api, study)
    assert checkpoint is not None
    fsspec.filesystem("file").rm(checkpoint, recursive=True)
    run(Runner(runner.client, runner.settings, "runner-2"))
    ended = only_trial(api, study)
    assert ended["state"] == "completed"
    assert "resumed_from" not in ended["resources"]


def test_checkpoints_are_kept_while_they_are_needed(api: Api, runner: Runner) -> None:
    study = api.create(training=LONG, search={"trials": 1}, search_space=SPACE)
    release_at(runner, 9)
    run(runner)
    folder = Path(str(checkpoint_of(api, study))).parent
    # Only the newest checkpoint that the server knows, and later ones.
    assert [f.name for f in folder.iterdir()] == ["001-00000009"]
    assert collect_checkpoints(api.ctx) == 0
    assert {f.name for f in (folder / "001-00000009").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    }
    run(Runner(runner.client, runner.settings, "runner-2"))
    assert collect_checkpoints(api.ctx) == 1
    assert not folder.exists()
    assert checkpoint_of(api, study) is None
    assert collect_checkpoints(api.ctx) == 0
    assert Path(only_trial(api, study)["artifact"]).exists()


def test_a_checkpoint_url_outside_the_study_is_never_removed(api: Api, tmp_path: Path) -> None:
    study = api.create(search={"trials": 1})
    precious = tmp_path / "precious" / "checkpoints" / "001"
    precious.mkdir(parents=True)
    lease = api.lease()
    assert lease is not None
    body = {"reports": [], "checkpoint": str(precious)}
    api.call("POST", f"/leases/{lease['id']}/reports", "worker", json=body)
    api.finish(lease)
    assert checkpoint_of(api, study) == str(precious)
    assert collect_checkpoints(api.ctx) == 1
    assert checkpoint_of(api, study) is None
    assert precious.exists()


@pytest.mark.parametrize(
    ("options", "at"),
    [({"batching": "length"}, 7), ({"max_steps": 8}, 8), ({"max_steps": 8}, 6), ({"gradient_accumulation": 2}, 4)],
)
def test_resume_is_bit_exact_for_every_training_option(
    api: Api, runner: Runner, options: dict[str, Any], at: int
) -> None:
    """Texts differ in length, so that ``batching: length`` reorders them. ``max_steps`` ends within an epoch."""
    sections = {"training": {**LONG, **options}, "search": {"trials": 1}, "search_space": SPACE}
    rows = [{"text": " ".join(["goal", "bank"][: 1 + k % 2] * (1 + k % 7)), "label": str(k % 2)} for k in range(40)]
    write_lines(runner.settings.data_dirs[0] / "lengths.jsonl", rows)
    data = {"path": "json", "data_files": {"train": "lengths.jsonl"}}
    sections["task"] = {"kind": "sequence_classification", "dataset": data}
    whole = api.create(**sections)
    run(runner)
    interrupted = api.create(**sections)
    release_at(runner, at)
    run(runner)
    if only_trial(api, interrupted)["state"] == "queued":
        run(Runner(runner.client, runner.settings, "runner-2"))
    ended, expected = only_trial(api, interrupted), only_trial(api, whole)
    assert (ended["state"], ended["resources"]["steps"]) == ("completed", expected["resources"]["steps"])
    assert ended["metrics"] == expected["metrics"]
    ours, theirs = weights(ended["artifact"]), weights(expected["artifact"])
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_checkpoint_at_an_epochs_end_comes_after_its_evaluation(
    api: Api, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that resumes from the checkpoint skips that evaluation, so it must be reported already."""
    order: list[str] = []
    original = runner_module.StoredCheckpoints.keep

    def keep(self: Any, folder: str, step: int) -> None:
        order.append(f"checkpoint {step}")
        original(self, folder, step)

    report = runner_module.Reporter.report
    monkeypatch.setattr(runner_module.StoredCheckpoints, "keep", keep)

    def reporting(self: Any, step: int, metrics: dict[str, float]) -> None:
        order.append(f"evaluation {step}")
        report(self, step, metrics)

    monkeypatch.setattr(runner_module.Reporter, "report", reporting)
    api.create(training={"epochs": 2, "checkpoint_steps": 5}, search={"trials": 1}, search_space=SPACE)
    run(runner)
    assert order == ["evaluation 5", "checkpoint 5", "evaluation 10"]


def test_a_workers_checkpoint_urls_cannot_remove_other_files(api: Api, runner: Runner, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    study = api.create(training={"epochs": 2, "checkpoint_steps": 4}, search={"trials": 1}, search_space=SPACE)
    lease = api.lease()
    assert lease is not None
    body = {"reports": [], "checkpoint": str(victim)}
    assert api.call("POST", f"/leases/{lease['id']}/reports", "worker", json=body).status_code == 200
    assert api.finish(lease, "released", None).status_code == 200
    run(runner)
    assert only_trial(api, study)["state"] == "completed"
    assert (victim / "file").read_text() == "precious"


def test_an_unknown_store_does_not_stop_the_removal_of_other_checkpoints(api: Api, runner: Runner) -> None:
    strange = api.create(search={"trials": 1})
    lease = api.lease()
    assert lease is not None
    body = {"reports": [], "checkpoint": "nope://x/checkpoints/1"}
    assert api.call("POST", f"/leases/{lease['id']}/reports", "worker", json=body).status_code == 200
    assert api.finish(lease).status_code == 200
    study = api.create(training=LONG, search={"trials": 1}, search_space=SPACE)
    run(runner)
    assert checkpoint_of(api, study) is not None
    assert collect_checkpoints(api.ctx) >= 1
    assert checkpoint_of(api, study) is None
    assert checkpoint_of(api, strange) is None


@pytest.mark.slow
def test_a_full_disk_loses_a_checkpoint_but_no_training_on_a_real_disk(
    api: Api, runner: Runner, tmp_path: Path
) -> None:
    """The file system has room for an adapter but not for a checkpoint. Needs root to mount it, as in CI."""
    options: dict[str, Any] = {"training": LONG, "search": {"trials": 1}, "search_space": SPACE}
    roomy = api.create(**options)
    run(runner)
    adapter = sum(f.stat().st_size for f in Path(only_trial(api, roomy)["artifact"]).iterdir())
    kept = checkpoint_of(api, roomy)
    assert kept is not None
    assert sum(f.stat().st_size for f in Path(kept).iterdir()) > 3 * adapter
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={2 * adapter + 8192}", "none", str(disk)], check=True)
    try:
        small = runner.settings.model_copy(update={"artifacts_url": str(disk)})
        api.ctx.settings.artifacts_url = str(disk)
        study = api.create(**options)
        run(Runner(runner.client, small, "runner-2"))
        trial = only_trial(api, study)
        assert trial["state"] == "completed", trial["failure"]
        assert checkpoint_of(api, study) is None
        assert not list(disk.rglob("checkpoints/*")), "what could not be finished takes no room"
        assert (Path(trial["artifact"]) / "adapter_model.safetensors").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
