"""Check a study's data before the study is stored, as far as the server can read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data_files import PACKAGED, SUFFIXES, CsvFile, first_json_keys, has_suffix, names_shown
from ..domain.task_spec import DataSource, TaskSpec
from ..errors import Fault, InvalidRequest
from ..paths import locate, resolve_inside

FILE_BUILDERS = ("json", "csv", "parquet", "arrow")


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
            where = locate(dataset.path, roots)
        except InvalidRequest as error:
            return [Fault(f"{at}/dataset/path", error.detail)]
        if dataset.path in PACKAGED and where == dataset.path:
            return [Fault(f"{at}/dataset/path", f"there is no folder {dataset.path!r} in the data directories")]
        return []
    if dataset.path not in FILE_BUILDERS:
        names = ", ".join(FILE_BUILDERS)
        return [Fault(f"{at}/dataset/path", f"{dataset.path!r} takes no data_files; with files it is one of: {names}")]
    faults = []
    for split, name in dataset.data_files.items():
        place = f"{at}/dataset/data_files/{split}"
        if not has_suffix(name, dataset.path):
            ends = ", ".join(SUFFIXES[dataset.path])
            faults.append(Fault(place, f"the name of a file of {dataset.path} data ends in one of: {ends}"))
            continue
        try:
            file = resolve_inside(name, roots)
        except InvalidRequest as error:
            faults.append(Fault(place, error.detail))
            continue
        if file is None or not file.is_file():
            faults.append(Fault(place, f"there is no file {name!r} in the allowed data directories (CDKA_DATA_DIRS)"))
            continue
        faults += _check_columns(dataset, file, columns, place)
    return faults


def _check_columns(source: DataSource, file: Path, columns: dict[str, str], place: str) -> list[Fault]:
    try:
        present, hint = _columns(source, file)
    except (OSError, ValueError) as error:
        return [Fault(place, f"{file.name} cannot be read as {source.path}: {error}")]
    if present is None:
        return []
    shown = names_shown(present)
    there = f"it has: {shown}" if shown is not None else "its first line does not look like a header"
    return [
        Fault(at, f"{file.name} has no column {column!r}; {there}{hint}")
        for column, at in columns.items()
        if column not in present
    ]


def _columns(source: DataSource, file: Path) -> tuple[list[str] | None, str]:
    """Column names of the first record and a hint if they look wrong; ``None`` for formats that are not read here."""
    if source.path == "csv":
        csv = CsvFile(file, source.format)
        return csv.columns, csv.hint()
    if source.path != "json":
        return None, ""
    return first_json_keys(file, source.format.encoding if source.format else None), ""
