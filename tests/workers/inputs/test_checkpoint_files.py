"""Checkpoints with faulty files are rejected once, before the first step, with the file and the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import Api
from workers.runner.runner import Runner

from .helpers import Weights, change_config, change_weights, refusal


def shard(folder: Path) -> list[Path]:
    """Split the weights into three files with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, files, where = sorted(weights), [], {}
    for k in range(3):
        file = folder / f"model-{k + 1:05d}-of-00003.safetensors"
        mine = names[k::3]
        save_file({n: weights[n] for n in mine}, file, metadata={"format": "pt"})
        where |= dict.fromkeys(mine, file.name)
        files.append(file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def without(word: str) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, lambda found: {n: w for n, w in found.items() if word not in n})


def renamed(change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, lambda found: {change(n): w for n, w in found.items()})


def configured(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **values)


def cut(file: Path, share: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def spoil(folder: Path, name: str, value: float) -> None:
    def change(found: Weights) -> Weights:
        found[name].view(-1)[3] = value
        return found

    change_weights(folder, change)


def drop_shard(folder: Path) -> None:
    shard(folder)[1].unlink()


def cut_shard(folder: Path) -> None:
    cut(shard(folder)[2])


def write_garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>404 not found</html>" * 100)


def point_to_lfs(folder: Path) -> None:
    (folder / "model.safetensors").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 90868376\n"
    )


CASES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a layer is missing": (
        without("layer.1."),
        ("lack 16 weights of the pretrained model", "encoder.layer.1.attention", "Only heads may be new"),
    ),
    "one weight is missing": (without("layer.1.attention.self.query.weight"), ("lack 1 weight", "self.query.weight")),
    "the embeddings are missing": (without("embeddings.word"), ("embeddings.word_embeddings.weight",)),
    "the config has a layer more": (configured(num_hidden_layers=3), ("encoder.layer.2.", "lack 16 weights")),
    "the config has a layer less": (
        configured(num_hidden_layers=1),
        ("leaves out layers that its files have", "encoder.layer.1.", "number of layers"),
    ),
    "another intermediate size": (
        configured(intermediate_size=128),
        ("in another shape", "intermediate.dense.weight"),
    ),
    "another hidden size": (configured(hidden_size=64), ("in another shape", "embeddings")),
    "a smaller vocabulary": (configured(vocab_size=10), ("in another shape", "word_embeddings.weight")),
    "names of another model": (renamed(lambda n: f"transformer.h.{n}"), ("no tensor in the files of", "BertFor")),
    "names of a compiled model": (renamed(lambda n: f"_orig_mod.{n}"), ("no tensor in the files of",)),
    "a file cut short": (lambda folder: cut(folder / "model.safetensors"), ("model.safetensors", "truncated")),
    "a header cut short": (lambda folder: cut(folder / "model.safetensors", 0.001), ("model.safetensors",)),
    "a shard cut short": (cut_shard, ("model-00003-of-00003.safetensors", "truncated")),
    "a shard that is not there": (drop_shard, ("model-00002-of-00003.safetensors",)),
    "no weights at all": (lambda folder: (folder / "model.safetensors").unlink(), ("model.safetensors",)),
    "a page of HTML": (write_garbage, ("model.safetensors",)),
    "a pointer of git-lfs": (point_to_lfs, ("model.safetensors", "git-lfs")),
    "a weight that is NaN": (
        lambda folder: spoil(folder, "encoder.layer.0.output.dense.weight", float("nan")),
        ("encoder.layer.0.output.dense.weight", "not finite"),
    ),
    "a weight that is infinite": (
        lambda folder: spoil(folder, "embeddings.LayerNorm.weight", float("inf")),
        ("embeddings.LayerNorm.weight", "not finite"),
    ),
    "a config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), ("config.json",)),
    "a config of an unknown model": (configured(model_type="quantum-bert"), ("quantum-bert",)),
    "no config": (lambda folder: (folder / "config.json").unlink(), ("config.json",)),
}


@pytest.mark.parametrize("case", CASES)
def test_faulty_checkpoint_files_are_rejected_once_with_the_reason(
    api: Api, runner: Runner, copied: Path, case: str
) -> None:
    spoil_it, told = CASES[case]
    spoil_it(copied)
    reason = refusal(api, runner, copied.name)
    for words in told:
        assert words in reason, reason
    assert len(reason) < 1500
    assert not any(f"{name}:" in reason for name in ("ValueError", "RuntimeError", "OSError", "KeyError")), reason


def test_a_sharded_checkpoint_is_trained(api: Api, runner: Runner, copied: Path) -> None:
    shard(copied)
    study = api.create(model={"path": copied.name}, search={"trials": 1}, training={"epochs": 1})
    lease = runner._next_lease()
    assert lease is not None
    runner.run_lease(lease)
    read = api.call("GET", f"/studies/{study['id']}").json()
    assert (read["state"], read["reason"]) == ("completed", None)
