"""Read data files into datasets. Content alone counts: nothing is cached by path or time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from service.data_files import CsvFile, UnreadableFile, json_records
from service.schemas.specs import FormatSpec

from .bad_rows import BadRow

_CHUNK = 10_000
# Records whose keys are named where a column is missing.
_KEYS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file or folder as it was read: its name in the study, SHA-256 and size in bytes."""

    name: str
    sha256: str
    bytes: int


def record_of(name: str, path: Path) -> FileRecord:
    """Hash a file, or every file of a folder with its relative path."""
    if path.is_file():
        with path.open("rb") as stream:
            return FileRecord(name, hashlib.file_digest(stream, "sha256").hexdigest(), path.stat().st_size)
    whole, size = hashlib.sha256(), 0
    for file in sorted(f for f in path.rglob("*") if f.is_file()):
        inner = record_of(str(file.relative_to(path)), file)
        whole.update(f"{inner.name}\0{inner.sha256}\n".encode())
        size += inner.bytes
    return FileRecord(name, whole.hexdigest(), size)


def read_file(
    builder: str, file: Path, form: FormatSpec | None, columns: Sequence[str] | None
) -> tuple[datasets.Dataset, list[BadRow]]:
    """A file's records, with at least these ``columns`` where it has them (``None``: all), and cells of a wrong type.

    A CSV file's cells are text as written. A JSON column has the type of most of its values; other cells are null.

    Raises:
        UnreadableFile: it is not in its format.
        OSError: it cannot be read.
    """
    try:
        data, bad = _READERS[builder](file, form, columns)
        for name in data.column_names:
            _require_text(data, name)
    except (UnreadableFile, OSError):
        raise
    except Exception as error:  # Arrow and its metadata raise anything for the files of users
        raise UnreadableFile(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return data, bad


def _require_text(data: datasets.Dataset, name: str) -> None:
    """Check that a column of text holds text.

    Raises:
        UnreadableFile: a cell is not UTF-8; names its row.
    """
    column = data.data.column(name)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return
    row = 0
    for chunk in column.chunks:
        try:
            chunk.validate(full=True)
        except pa.ArrowInvalid:
            for cell in chunk.cast(pa.binary() if pa.types.is_string(column.type) else pa.large_binary()):
                row += 1
                try:
                    (cell.as_py() or b"").decode()
                except UnicodeDecodeError as error:
                    raise UnreadableFile(f"column {name!r} of row {row} is not UTF-8: {error.reason}") from error
        row += len(chunk)


def _read_csv(
    file: Path, form: FormatSpec | None, columns: Sequence[str] | None
) -> tuple[datasets.Dataset, list[BadRow]]:
    csv = CsvFile(file, form)
    places = [k for k, name in enumerate(csv.columns) if columns is None or name in columns]
    names = [csv.columns[k] for k in places]
    if columns is not None and (missing := [c for c in columns if c not in names]):
        there = ", ".join(map(repr, csv.columns))
        raise UnreadableFile(f"it has no column {missing[0]!r}; it has: {there}{csv.hint()}")
    schema = pa.schema([(name, pa.string()) for name in names])
    tables, rows = [], []
    for record in csv.records():
        rows.append([record[k] for k in places])
        if len(rows) == _CHUNK:
            tables.append(pa.table([list(cells) for cells in zip(*rows, strict=True)], schema=schema))
            rows = []
    if rows:
        tables.append(pa.table([list(cells) for cells in zip(*rows, strict=True)], schema=schema))
    return datasets.Dataset(pa.concat_tables(tables) if tables else schema.empty_table()), []


def _read_json(
    file: Path, form: FormatSpec | None, columns: Sequence[str] | None
) -> tuple[datasets.Dataset, list[BadRow]]:
    cells: dict[str, list[Any]] = {name: [] for name in columns or ()}
    keys: dict[str, None] = {}
    number = 0
    for number, record in enumerate(json_records(file, form.encoding if form else None), 1):
        for name in record:
            if len(keys) < _KEYS_SHOWN:
                keys.setdefault(name)
            if columns is None and name not in cells:
                cells[name] = [None] * (number - 1)
        for name, values in cells.items():
            values.append(record.get(name))
    if number == 0:
        raise UnreadableFile("the file is empty")
    missing = [name for name, values in cells.items() if name not in keys and all(v is None for v in values)]
    if missing:
        raise UnreadableFile(f"it has no column {missing[0]!r}; it has: {', '.join(map(repr, keys))}")
    arrays, bad = {}, []
    for name, values in cells.items():
        arrays[name], found = _column(name, values)
        bad += found
    return datasets.Dataset(pa.table(arrays)), bad


def _column(name: str, values: list[Any]) -> tuple[Any, list[BadRow]]:
    """The values as an Arrow column. Those of another kind than most become null and are named."""
    kinds = Counter(_kind(value) for value in values if value is not None)
    usual = max(kinds, key=lambda kind: kinds[kind], default="")
    if len(kinds) < 2 and _fits(values):
        return pa.array(values), []
    kept: list[Any] = []
    bad = []
    for number, value in enumerate(values, 1):
        problem = None
        if value is not None and _kind(value) != usual:
            problem = f"is {_kind(value)} where most rows have {usual}"
        elif value is not None and not _fits([value]):
            problem = _UNFIT[usual]
        if problem is not None:
            bad.append(BadRow(number, name, problem, _shown(value)))
        kept.append(None if problem else value)
    if not _fits(kept):
        # Lists or objects that differ inside: keep those that are like the first.
        first = next(value for value in kept if value is not None)
        for k, value in enumerate(kept):
            if value is not None and not _fits([first, value]):
                bad.append(BadRow(k + 1, name, "differs in the types of its parts from the first row", _shown(value)))
                kept[k] = None
    return pa.array(kept), bad


def _fits(values: list[Any]) -> bool:
    try:
        pa.array(values)
    except (pa.ArrowException, UnicodeError, OverflowError):
        return False
    return True


# What is wrong with a value of each kind that Arrow cannot hold.
_UNFIT = {
    "text": "is not valid Unicode",
    "a number": "is too large a number",
    "true or false": "cannot be read",
    "a list": "has parts of different types",
    "an object": "has parts of different types",
}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "text" if isinstance(value, str) else "an object" if isinstance(value, dict) else "a list"


def _shown(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _read_parquet(
    file: Path, form: FormatSpec | None, columns: Sequence[str] | None
) -> tuple[datasets.Dataset, list[BadRow]]:
    try:
        whole = pq.ParquetFile(file, memory_map=True)
        return _selected(lambda names: whole.read(columns=names), whole.schema_arrow.names, columns)
    except pa.ArrowException as error:
        raise UnreadableFile(str(error)) from error


def _read_arrow(
    file: Path, form: FormatSpec | None, columns: Sequence[str] | None
) -> tuple[datasets.Dataset, list[BadRow]]:
    mapped = pa.memory_map(str(file))
    try:
        try:
            table = pa.ipc.open_stream(mapped).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(mapped).read_all()
        return _selected(table.select, table.schema.names, columns)
    except pa.ArrowException as error:
        raise UnreadableFile(str(error)) from error


def _selected(
    read: Callable[[list[str]], Any], there: Sequence[str], columns: Sequence[str] | None
) -> tuple[datasets.Dataset, list[BadRow]]:
    if columns is not None and (missing := [c for c in columns if c not in there]):
        raise UnreadableFile(f"it has no column {missing[0]!r}; it has: {', '.join(map(repr, there))}")
    twice = [name for name, count in Counter(there).items() if count > 1 and (columns is None or name in columns)]
    if twice:
        raise UnreadableFile(f"it has the column {twice[0]!r} more than once")
    return datasets.Dataset(read(list(there if columns is None else dict.fromkeys(columns)))), []


_READERS: dict[str, Callable[..., tuple[datasets.Dataset, list[BadRow]]]] = {
    "csv": _read_csv,
    "json": _read_json,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
