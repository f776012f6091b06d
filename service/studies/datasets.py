"""Check a study's data before the study is stored, as far as the server can read it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from ..domain.task_spec import DataSource, TaskSpec
from ..errors import Fault, InvalidRequest
from ..paths import locate, resolve_inside

FILE_BUILDERS = ("json", "csv", "parquet", "arrow")
# A longer first record does not belong to a text dataset.
_LONGEST_RECORD = 16 * 1024 * 1024


def check_dataset(task: TaskSpec, roots: Sequence[Path], at: str) -> list[Fault]:
    """The faults of a task's data: missing files, files outside the data folders, columns that the first record lacks.

    Reads JSON lines and CSV files. Runners check other formats and hub datasets, and fail the study with the reason.
    """
    faults = _check_source(task.dataset, _places(task.roles, task.columns_read, at), roots, at)
    if task.evaluation is not None:
        inner = f"{at}/evaluation"
        places = _places(task.evaluation_roles, task.evaluation_columns_read, inner)
        faults += _check_source(task.evaluation.dataset, places, roots, inner)
    return faults


def _places(roles: dict[str, str], columns: Sequence[str], at: str) -> dict[str, str]:
    """Where the study names each column that is read."""
    named = {column: f"{at}/columns/{role}" for role, column in roles.items()}
    return {column: named.get(column, f"{at}/template") for column in columns}


def _check_source(dataset: DataSource, columns: dict[str, str], roots: Sequence[Path], at: str) -> list[Fault]:
    if dataset.data_files is None:
        if dataset.path in FILE_BUILDERS:
            return [Fault(f"{at}/dataset/data_files", f"{dataset.path} needs data_files: {{train: FILE, ...}}")]
        try:
            locate(dataset.path, roots)
        except InvalidRequest as error:
            return [Fault(f"{at}/dataset/path", error.detail)]
        return []
    if dataset.path not in FILE_BUILDERS:
        names = ", ".join(FILE_BUILDERS)
        return [Fault(f"{at}/dataset/path", f"{dataset.path!r} takes no data_files; with files it is one of: {names}")]
    faults = []
    for split, name in dataset.data_files.items():
        place = f"{at}/dataset/data_files/{split}"
        try:
            file = resolve_inside(name, roots)
        except InvalidRequest as error:
            faults.append(Fault(place, error.detail))
            continue
        if file is None or not file.is_file():
            faults.append(Fault(place, f"there is no file {name!r} in the allowed data directories (CDKA_DATA_DIRS)"))
            continue
        faults += _check_columns(dataset.path, file, columns, place)
    return faults


def _check_columns(builder: str, file: Path, columns: dict[str, str], place: str) -> list[Fault]:
    try:
        present = _columns(builder, file)
    except (OSError, ValueError, csv.Error) as error:
        return [Fault(place, f"cannot be read as {builder}: {error}")]
    if present is None:
        return []
    return [
        Fault(at, f"{file.name} has no column {column!r}; it has: {', '.join(present)}")
        for column, at in columns.items()
        if column not in present
    ]


def _columns(builder: str, file: Path) -> list[str] | None:
    """Column names of the first record; ``None`` for formats that the server does not read."""
    if builder not in ("json", "csv"):
        return None
    with file.open(encoding="utf-8", newline="") as stream:
        first = stream.readline(_LONGEST_RECORD)
    if not first.strip():
        raise ValueError("the file is empty, or starts with an empty line")
    if builder == "csv":
        return next(csv.reader([first]))
    try:
        record = json.loads(first)
    except json.JSONDecodeError as error:
        raise ValueError(f"its first line is not a JSON object (give json lines): {error}") from error
    if not isinstance(record, dict):
        raise ValueError("its first line is not a JSON object (give json lines)")
    return list(record)
