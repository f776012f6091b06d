"""A study's data: loaded, sampled and split, before any tokenising."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from service.errors import InvalidRequest
from service.paths import locate, resolve_inside
from service.schemas.specs import DataSource, TaskSpec

from ..failures import Rejected

SPLITS = ("train", "validation", "test")
# Share of the training split that is carved out for a missing split.
CARVED_SHARE = 0.2
# Carving belongs to the data, not to the search, so its seed is the same for all studies.
CARVING_SEED = 0
# A stream is shuffled within a window of this many examples.
STREAM_WINDOW = 10_000


@dataclass(slots=True)
class Splits:
    """Train, validation and test, with a note on the origin of each and the names of those carved out of train."""

    train: Any
    validation: Any
    test: Any
    origins: dict[str, str] = field(default_factory=dict)
    carved: frozenset[str] = frozenset()


def load_splits(task: TaskSpec, roots: Sequence[Path]) -> Splits:
    """Load what ``datasets.load_dataset`` takes and carve out the splits that are missing, by a fixed seed.

    Raises:
        Rejected: the data cannot be loaded, or lacks a column.
    """
    found, origins = _read(task.dataset, roots)
    if "train" not in found:
        raise Rejected(f"the dataset has no train split; it has: {', '.join(found)}")
    if task.evaluation is not None:
        others, told = _read(task.evaluation.dataset, roots)
        if "test" not in others:
            raise Rejected(f"the evaluation dataset has no test split; it has: {', '.join(others)}")
        found = {"train": found["train"], **{name: others[name] for name in ("validation", "test") if name in others}}
        origins = {name: told[name] if name in others and name != "train" else origins[name] for name in found}
    carved = frozenset({"test", "validation"} - found.keys())
    for name in ("test", "validation"):
        if name in carved:
            if len(found["train"]) < 10:
                raise Rejected(f"{len(found['train'])} training examples are too few to carve out a {name} split")
            parts = found["train"].train_test_split(test_size=CARVED_SHARE, seed=CARVING_SEED)
            found["train"], found[name] = parts["train"], parts["test"]
            origins[name] = f"{len(found[name])} examples carved out of train (seed {CARVING_SEED})"
            origins["train"] = f"{len(found['train'])} examples"
    for name, split in found.items():
        wanted = task.columns_read if name == "train" or name in carved else task.evaluation_columns_read
        missing = [c for c in wanted if c not in split.column_names]
        if missing:
            raise Rejected(f"the {name} split has no column {missing[0]!r}; it has: {', '.join(split.column_names)}")
        if len(split) == 0:
            raise Rejected(f"the {name} split is empty")
    return Splits(found["train"], found["validation"], found["test"], origins, carved)


def _read(source: DataSource, roots: Sequence[Path]) -> tuple[dict[str, Any], dict[str, str]]:
    """The splits of a source, sampled as it specifies."""
    loaded = _load(source, roots)
    sample: dict[str, int] = dict((source.sample or {}).items())
    found, origins = {}, {}
    for name in SPLITS:
        if name not in loaded:
            if name in sample:
                raise Rejected(f"there is no {name} split to sample from; available: {', '.join(map(str, loaded))}")
            continue
        split, wanted = loaded[name], sample.get(name)
        try:
            if source.streaming:
                if wanted is None:
                    raise Rejected(f"the stream has a {name} split: say in sample how many examples of it to take")
                window = split.shuffle(seed=source.seed, buffer_size=STREAM_WINDOW).take(wanted)
                split = datasets.Dataset.from_list(list(window), features=window.features)
                origins[name] = f"{len(split)} examples of a stream (seed {source.seed})"
            elif wanted is not None and wanted < len(split):
                origins[name] = f"{wanted} of {len(split)} examples (seed {source.seed})"
                split = split.shuffle(seed=source.seed).select(range(wanted))
            else:
                origins[name] = f"{len(split)} examples"
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise _unreadable(source, error) from error
        found[name] = split
    return found, origins


def _load(source: DataSource, roots: Sequence[Path]) -> Any:
    try:
        if source.data_files is None:
            where = locate(source.path, roots)
            options: dict[str, Any] = {"revision": source.revision, "streaming": source.streaming}
            if source.splits is None:
                return datasets.load_dataset(where, source.name, **options)
            return {
                split: datasets.load_dataset(where, source.name, split=said, **options)
                for split, said in source.splits.items()
            }
        files = {}
        for split, name in source.data_files.items():
            file = resolve_inside(name, roots)
            if file is None:
                raise Rejected(f"there is no file {name!r} in this runner's data directories (CDKA_DATA_DIRS)")
            # datasets takes patterns; a file's own brackets and stars are meant literally.
            files[split] = glob.escape(str(file))
        return datasets.load_dataset(source.path, data_files=files, streaming=source.streaming)
    except InvalidRequest as error:
        raise Rejected(error.detail) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(source, error) from error


def _unreadable(source: DataSource, error: Exception) -> Rejected:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return Rejected(f"the dataset {source.path!r} cannot be loaded: {reason}")
