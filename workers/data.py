"""A study's data: loaded, split and tokenised once, then kept warm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from service.errors import InvalidRequest
from service.paths import locate, resolve_inside
from service.schemas.specs import DatasetSpec, TaskSpec

from .failures import Rejected

SPLITS = ("train", "validation", "test")
# Share of the training split that stands in for a missing one.
CARVED_SHARE = 0.2
# Carving is part of the data, not of the search: one seed for every study.
CARVING_SEED = 0


@dataclass(slots=True)
class Splits:
    """Train, validation and test, with a word on where each came from."""

    train: Any
    validation: Any
    test: Any
    origins: dict[str, str] = field(default_factory=dict)


def load_splits(task: TaskSpec, roots: Sequence[Path]) -> Splits:
    """Load what ``datasets.load_dataset`` takes and carve out the splits that are missing, by a fixed seed.

    Raises:
        Rejected: the data cannot be loaded, or lacks a column.
    """
    loaded = _load(task.dataset, roots)
    if "train" not in loaded:
        raise Rejected(f"the dataset has no train split; it has: {', '.join(map(str, loaded))}")
    found = {name: loaded[name] for name in SPLITS if name in loaded}
    origins = {name: f"{len(split)} examples" for name, split in found.items()}
    for name in ("test", "validation"):
        if name not in found:
            if len(found["train"]) < 10:
                raise Rejected(f"{len(found['train'])} training examples are too few to carve out a {name} split")
            parts = found["train"].train_test_split(test_size=CARVED_SHARE, seed=CARVING_SEED)
            found["train"], found[name] = parts["train"], parts["test"]
            origins[name] = f"{len(found[name])} examples carved out of train (seed {CARVING_SEED})"
            origins["train"] = f"{len(found['train'])} examples"
    for name, split in found.items():
        missing = [c for c in task.columns.model_dump().values() if c is not None and c not in split.column_names]
        if missing:
            raise Rejected(f"the {name} split has no column {missing[0]!r}; it has: {', '.join(split.column_names)}")
        if len(split) == 0:
            raise Rejected(f"the {name} split is empty")
    return Splits(found["train"], found["validation"], found["test"], origins)


def _load(dataset: DatasetSpec, roots: Sequence[Path]) -> Any:
    try:
        if dataset.data_files is None:
            return datasets.load_dataset(locate(dataset.path, roots), dataset.name, revision=dataset.revision)
        files = {}
        for split, name in dataset.data_files.items():
            file = resolve_inside(name, roots)
            if file is None:
                raise Rejected(f"there is no file {name!r} in this runner's data directories (CDKA_DATA_DIRS)")
            files[split] = str(file)
        return datasets.load_dataset(dataset.path, data_files=files)
    except InvalidRequest as error:
        raise Rejected(error.detail) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0]
        raise Rejected(f"the dataset {dataset.path!r} cannot be loaded: {reason}") from error
