"""A study's data: loaded, sampled, checked and split, before any tokenising."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets

from service.schemas.specs import CLASSIFICATION, BadRows, DataSource, TaskKind, TaskSpec

from ..failures import Rejected
from .bad_rows import BadRow, SplitFindings, refuse
from .labels import classes_of, label_reader
from .readers import FileRecord
from .sources import Loaded, load_source, unreadable
from .values import check_labels, check_values, check_words, column_checks, names_in

SPLITS = ("train", "validation", "test")
# Share of the training split that is carved out for a missing split.
CARVED_SHARE = 0.2
# Carving belongs to the data, not to the search, so its seed is the same for all studies.
CARVING_SEED = 0
LEAST_TO_CARVE = 10
# A stream is shuffled within a window of this many examples.
STREAM_WINDOW = 10_000


@dataclass(slots=True)
class Split:
    """One split while it is prepared.

    ``numbers`` are its rows' numbers in their source, from 1. ``read`` counts the source's rows, ``bad`` are those
    found so far, ``key`` identifies the source by content.
    """

    data: Any
    numbers: list[int]
    read: int
    key: str
    origin: str
    policy: BadRows
    bad: list[BadRow] = field(default_factory=list)
    files: list[FileRecord] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    dropped: int = 0
    notes: list[str] = field(default_factory=list)

    def keep(self, places: Sequence[int]) -> Split:
        """The split with only the rows at these places."""
        return replace(self, data=self.data.select(places), numbers=[self.numbers[k] for k in places])

    def told(self) -> str:
        """Where its examples come from."""
        return "; ".join([self.origin, *self.notes])

    def content(self) -> str:
        """A key of its rows: equal exactly if sources and rows are."""
        said = json.dumps([self.key, self.numbers])
        return hashlib.sha256(said.encode()).hexdigest()


@dataclass(slots=True)
class Splits:
    """Train, validation and test, and the names of those carved out of train.

    ``classes`` are those of a classification, in natural order. ``parts`` has every split's row numbers, files and
    counts.
    """

    train: Any
    validation: Any
    test: Any
    carved: frozenset[str] = frozenset()
    classes: list[str] | None = None
    parts: dict[str, Split] = field(default_factory=dict)

    def told(self) -> dict[str, str]:
        """Where the examples of each split come from, and which were left out."""
        return {name: part.told() for name, part in self.parts.items()}


def load_splits(task: TaskSpec, roots: Sequence[Path], scratch: Path) -> Splits:
    """Load a task's data, check every value that it reads, and carve out the splits that are missing, by a fixed seed.

    ``scratch`` is a folder for temporary files, which must outlive the splits.

    Raises:
        Rejected: the data cannot be loaded, lacks a column, or has rows that cannot be used.
    """
    found = _read(task.dataset, _wanted(task, task.columns_read), roots, scratch)
    if "train" not in found:
        raise Rejected(f"the dataset has no train split; it has: {', '.join(found)}")
    own = set(found)
    if task.evaluation is not None:
        others = _read(task.evaluation.dataset, _wanted(task, task.evaluation_columns_read), roots, scratch)
        if "test" not in others:
            raise Rejected(f"the evaluation dataset has no test split; it has: {', '.join(others)}")
        found = {"train": found["train"], **{name: others[name] for name in ("validation", "test") if name in others}}
        own = {"train"}
    for name, split in found.items():
        _require_columns(name, split.data, task.columns_read if name in own else task.evaluation_columns_read)
    found, classes = _checked(task, found, own)
    carved = frozenset({"test", "validation"} - found.keys())
    label = task.roles["label"] if task.kind in CLASSIFICATION else None
    for name in ("test", "validation"):
        if name in carved:
            found["train"], found[name] = _carve(name, found["train"], label)
    return Splits(
        train=found["train"].data,
        validation=found["validation"].data,
        test=found["test"].data,
        carved=carved,
        classes=classes,
        parts=found,
    )


FAULT = "fault"


def usable(encoded: dict[str, Any], splits: Splits, column: str) -> dict[str, Any]:
    """The encoded splits without rows whose ``fault`` column names a problem, and without that column.

    Raises:
        Rejected: a split that rejects bad rows has some, or none of its rows is left.
    """
    findings = {}
    for name, data in encoded.items():
        part, faults = splits.parts[name], data[FAULT]
        bad = [BadRow(part.numbers[k], column, fault) for k, fault in enumerate(faults) if fault is not None]
        findings[name] = SplitFindings(name, len(data), part.policy, bad)
    refuse(findings.values())
    kept = {}
    for name, data in encoded.items():
        found, part = findings[name], splits.parts[name]
        if found.found:
            places = [k for k, number in enumerate(part.numbers) if number not in found.numbers]
            if not places:
                raise Rejected(f"no row of the {name} split can be used: {found.told()}")
            data = data.select(places)
            splits.parts[name] = part.keep(places)
            splits.parts[name].dropped += len(found.numbers)
            splits.parts[name].notes.append(f"{len(found.numbers)} dropped: {found.told()}")
        kept[name] = data.remove_columns(FAULT)
    return kept


def _wanted(task: TaskSpec, columns: Sequence[str]) -> Sequence[str] | None:
    """The columns to read; a custom task may read others than it names."""
    return None if task.kind is TaskKind.CUSTOM else columns


def _require_columns(name: str, data: Any, wanted: Sequence[str]) -> None:
    missing = [c for c in wanted if c not in data.column_names]
    if missing:
        raise Rejected(f"the {name} split has no column {missing[0]!r}; it has: {', '.join(data.column_names)}")
    if len(data) == 0:
        raise Rejected(f"the {name} split is empty")


def _checked(task: TaskSpec, found: dict[str, Split], own: set[str]) -> tuple[dict[str, Split], list[str] | None]:
    """The splits without rows that cannot be used, and the classes; refuses bad rows of all splits at once."""
    reading = {
        name: (task.roles, task.template)
        if name in own
        else (task.evaluation_roles, (task.evaluation and task.evaluation.template) or task.template)
        for name in found
    }
    for name, split in found.items():
        already = {bad.number for bad in split.bad}
        checks = column_checks(task, *reading[name])
        split.bad += [b for b in check_values(split.data, split.numbers, checks) if b.number not in already]
    good = {name: _without(split, {bad.number for bad in split.bad}) for name, split in found.items()}
    for name, split in good.items():
        if len(split.data) == 0:
            findings = SplitFindings(name, len(found[name].data), found[name].policy, found[name].bad)
            refuse([findings])
            raise Rejected(f"no row of the {name} split can be used: {findings.told()}")
    classes, unknown = _unknown_labels(task, good, reading)
    for name, rows in unknown.items():
        counted = found[name].policy is BadRows.COUNT_AS_WRONG and name != "train"
        if counted and len(rows) == len(good[name].data):
            raise Rejected(f"no row of the {name} split has a class of train, so nothing can be judged on it")
        if counted and rows:
            found[name].notes.append(f"{len(rows)} of a class that train lacks, counted as wrong")
        else:
            found[name].bad += rows
    hint = ""
    if any(unknown.values()) and task.kind in CLASSIFICATION:
        hint = ". Declare all classes in task.labels, or keep such rows as errors with on_bad_row: count_as_wrong"
    all_findings = {name: SplitFindings(name, len(s.data), s.policy, s.bad) for name, s in found.items()}
    refuse(all_findings.values(), hint)
    kept = {}
    for name, split in found.items():
        kept[name] = _without(split, all_findings[name].numbers)
        kept[name].dropped = len(all_findings[name].numbers)
        if kept[name].dropped:
            kept[name].notes.append(f"{kept[name].dropped} dropped: {all_findings[name].told()}")
        if len(kept[name].data) == 0:
            raise Rejected(f"no row of the {name} split can be used: {all_findings[name].told()}")
    return kept, classes


def _unknown_labels(
    task: TaskSpec, good: dict[str, Split], reading: dict[str, tuple[dict[str, str], str | None]]
) -> tuple[list[str] | None, dict[str, list[BadRow]]]:
    """The classes of a classification, and the rows whose label is none of them (or has no word)."""
    if task.kind is TaskKind.SEQ2SEQ_LM and task.label_words is not None:
        words = task.label_words
        return None, {
            name: check_words(split.data, split.numbers, reading[name][0]["target"], words)
            for name, split in good.items()
        }
    if task.kind not in CLASSIFICATION:
        return None, {}
    train, column = good["train"], reading["train"][0]["label"]
    classes = classes_of(task, train.data, column, names_in(train.data, column))
    unknown = {
        name: check_labels(split.data, split.numbers, reading[name][0]["label"], classes, task.labels is not None)
        for name, split in good.items()
        if name != "train" or task.labels is not None
    }
    return classes, unknown


def _without(split: Split, numbers: set[int]) -> Split:
    if not numbers:
        return split
    return split.keep([k for k, number in enumerate(split.numbers) if number not in numbers])


def _carve(name: str, train: Split, label: str | None) -> tuple[Split, Split]:
    """Train without a share of it, and that share; every class keeps a row in train."""
    if len(train.data) < LEAST_TO_CARVE:
        raise Rejected(f"{len(train.data)} training examples are too few to carve out a {name} split")
    parts = datasets.Dataset.from_dict({"place": range(len(train.data))}).train_test_split(
        test_size=CARVED_SHARE, seed=CARVING_SEED
    )
    kept, taken = list(parts["train"]["place"]), list(parts["test"]["place"])
    notes = []
    if label is not None:
        read = label_reader(train.data, label)
        labels = [read(value) for value in train.data[label]]
        left = Counter(labels[k] for k in kept)
        # The first example of every class that is only among the taken ones.
        returned = {labels[k]: k for k in reversed(taken) if not left[labels[k]]}
        if returned:
            taken = [k for k in taken if k not in returned.values()]
            kept += sorted(returned.values())
            notes.append(f"{len(returned)} examples of rare classes stay in train ({', '.join(sorted(returned)[:10])})")
    if not taken:
        raise Rejected(
            f"no {name} split can be carved out of train: every example taken for it is the only one of its class; "
            f"name a {name} file"
        )
    part = replace(train.keep(taken), dropped=0, notes=notes)
    part.origin = f"{len(taken)} examples carved out of train (seed {CARVING_SEED})"
    rest = train.keep(kept)
    rest.origin = f"{len(kept)} examples"
    return rest, part


def _read(source: DataSource, columns: Sequence[str] | None, roots: Sequence[Path], scratch: Path) -> dict[str, Split]:
    """The splits of a source, sampled as it specifies."""
    loaded = load_source(source, columns, roots, scratch)
    sample: dict[str, int] = dict((source.sample or {}).items())
    found = {}
    for name in SPLITS:
        if name not in loaded:
            if name in sample:
                raise Rejected(f"there is no {name} split to sample from; available: {', '.join(map(str, loaded))}")
            continue
        try:
            found[name] = _sampled(name, loaded[name], source, sample.get(name))
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise unreadable(source, error) from error
    return found


def _sampled(name: str, loaded: Loaded, source: DataSource, wanted: int | None) -> Split:
    data = loaded.data
    if source.streaming:
        if wanted is None:
            raise Rejected(f"the stream has a {name} split: say in sample how many examples of it to take")
        if isinstance(data, datasets.Dataset):
            # A file: rows keep their numbers.
            places = datasets.Dataset.from_dict({"place": range(len(data))}).to_iterable_dataset()
            window = places.shuffle(seed=source.seed, buffer_size=STREAM_WINDOW).take(wanted)
            chosen = [row["place"] for row in window]
            whole = Split(data, list(range(1, len(data) + 1)), len(data), loaded.key, "", source.on_bad_row)
            split = whole.keep(chosen)
        else:
            window = data.shuffle(seed=source.seed, buffer_size=STREAM_WINDOW).take(wanted)
            data = datasets.Dataset.from_list(list(window), features=window.features)
            split = Split(data, list(range(1, len(data) + 1)), len(data), data._fingerprint, "", source.on_bad_row)
        split.origin = f"{len(split.data)} examples of a stream (seed {source.seed})"
    else:
        numbers = list(range(1, len(data) + 1))
        split = Split(data, numbers, len(data), loaded.key, f"{len(data)} examples", source.on_bad_row)
        if wanted is not None and wanted < len(data):
            shuffled = datasets.Dataset.from_dict({"place": range(len(data))}).shuffle(seed=source.seed)
            split = split.keep(shuffled.select(range(wanted))["place"])
            split.origin = f"{wanted} of {len(data)} examples (seed {source.seed})"
    chosen_numbers = set(split.numbers)
    split.bad = [bad for bad in loaded.bad if bad.number in chosen_numbers]
    split.files, split.paths = loaded.files, loaded.paths
    return split
