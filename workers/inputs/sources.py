"""Where a study's splits are loaded from: files, folders and the hub. Rows are as they lie there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets

from service.data_files import PACKAGED, SUFFIXES, UnreadableFile, has_suffix
from service.errors import InvalidRequest
from service.paths import locate, resolve_inside
from service.schemas.specs import DataSource, FormatSpec

from ..failures import Rejected, root_cause
from .bad_rows import BadRow
from .folders import require_contained
from .readers import FileRecord, read_file, record_of


@dataclass(slots=True)
class Loaded:
    """A split as it was loaded: a dataset, or a stream of one."""

    data: Any
    key: str
    bad: list[BadRow] = field(default_factory=list)
    files: list[FileRecord] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)


def load_source(
    source: DataSource, columns: Sequence[str] | None, roots: Sequence[Path], scratch: Path
) -> dict[str, Loaded]:
    """Every split of a source, whole.

    Raises:
        Rejected: it cannot be loaded; the message says which file and why.
    """
    try:
        if source.data_files is not None:
            return {split: _file(source, name, columns, roots) for split, name in source.data_files.items()}
        where = locate(source.path, roots)
        folder = Path(where)
        if where == source.path and source.path in PACKAGED:
            raise Rejected(f"there is no folder {source.path!r} in this runner's data directories (CDKA_DATA_DIRS)")
        if folder.is_dir():
            require_contained(folder, source.path, roots)
        files, paths = ([record_of(source.path, folder)], [folder]) if folder.exists() else ([], [])
        if folder.is_dir() and any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
            saved = _saved(source, folder)
        else:
            options: dict[str, Any] = {"revision": source.revision, "streaming": source.streaming}
            if files:
                # datasets would find a replaced file's old content by path and time in its own cache.
                options["cache_dir"] = str(scratch / files[0].sha256)
                own = _own_files(source, where, options["cache_dir"])
                if own is not None:
                    return _of_folder(source, folder, own, columns, files, paths)
            saved = _of_hub(source, where, options)
        return {
            split: Loaded(
                data, files[0].sha256 + split if files else getattr(data, "_fingerprint", ""), [], files, paths
            )
            for split, data in saved.items()
        }
    except InvalidRequest as error:
        raise Rejected(error.detail) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise unreadable(source, error) from error


def _file(source: DataSource, name: str, columns: Sequence[str] | None, roots: Sequence[Path]) -> Loaded:
    if not has_suffix(name, source.path):
        raise Rejected(
            f"the name of {name!r} does not end as {source.path} data does: {', '.join(SUFFIXES[source.path])}"
        )
    file = resolve_inside(name, roots)
    if file is None:
        raise Rejected(f"there is no file {name!r} in this runner's data directories (CDKA_DATA_DIRS)")
    try:
        data, bad = read_file(source.path, file, source.format, columns)
        record = record_of(name, file)
    except (UnreadableFile, OSError) as error:
        raise Rejected(f"{name} cannot be read as {source.path}: {error}") from error
    form = source.format.model_dump(mode="json") if source.format is not None else None
    return Loaded(data, json.dumps([record.sha256, source.path, form]), bad, [record], [file])


def _own_files(
    source: DataSource, where: str, cache: str
) -> tuple[str, FormatSpec | None, dict[str, list[Path]]] | None:
    """The format of a local folder's files and the files of each split; ``None`` if they are not read by our readers.

    A file is read alike in a folder and by its name: datasets would read CSV and JSON by other rules.
    """
    builder = datasets.load_dataset_builder(where, source.name, cache_dir=cache)
    kind = type(builder).__module__.rsplit(".", 1)[-1]
    if kind not in ("csv", "json") or source.streaming:
        return None
    found = {
        str(split): [Path(str(file)) for file in files] for split, files in (builder.config.data_files or {}).items()
    }
    if not all(file.is_file() for files in found.values() for file in files):
        return None
    form = None
    if kind == "csv" and (separator := getattr(builder.config, "sep", ",")) not in (",", None):
        form = FormatSpec(delimiter=separator)
    return kind, form, found


def _of_folder(
    source: DataSource,
    folder: Path,
    own: tuple[str, FormatSpec | None, dict[str, list[Path]]],
    columns: Sequence[str] | None,
    records: list[FileRecord],
    paths: list[Path],
) -> dict[str, Loaded]:
    kind, form, found = own
    loaded = {}
    for split, files in found.items():
        parts, bad, rows = [], [], 0
        for file in files:
            try:
                data, faults = read_file(kind, file, form, columns)
            except (UnreadableFile, OSError) as error:
                name = file.relative_to(folder) if file.is_relative_to(folder) else file.name
                raise Rejected(f"{name} of {source.path!r} cannot be read as {kind}: {error}") from error
            bad += [replace(fault, number=fault.number + rows) for fault in faults]
            rows += len(data)
            parts.append(data)
        try:
            whole = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
        except ValueError as error:
            raise Rejected(
                f"the files of the {split} split of {source.path!r} differ in their columns' types"
            ) from error
        loaded[split] = Loaded(whole, records[0].sha256 + split, bad, records, paths)
    if source.splits is None:
        return loaded
    lengths = {split: len(part.data) for split, part in loaded.items()}
    chosen: dict[str, Loaded] = {}
    for split, said in source.splits.items():
        instructions = datasets.ReadInstruction.from_spec(said).to_absolute(lengths)
        (one,) = instructions[:1]
        part = loaded[one.splitname]
        begin, end = one.from_ or 0, len(part.data) if one.to is None else one.to
        kept = [replace(bad, number=bad.number - begin) for bad in part.bad if begin < bad.number <= end]
        chosen[split] = Loaded(part.data.select(range(begin, end)), f"{part.key}{said}", kept, part.files, part.paths)
    return chosen


def _of_hub(source: DataSource, where: str, options: dict[str, Any]) -> dict[str, Any]:
    if source.splits is None:
        loaded: dict[str, Any] = datasets.load_dataset(where, source.name, **options)
        return loaded
    # A slice is another content, and has another fingerprint.
    return {
        split: datasets.load_dataset(where, source.name, split=said, **options) for split, said in source.splits.items()
    }


def _saved(source: DataSource, folder: Path) -> dict[str, Any]:
    """A folder that ``save_to_disk`` wrote."""
    if source.splits is not None or source.name is not None or source.streaming:
        raise Rejected(f"{source.path!r} was saved by save_to_disk: it takes no name, splits or streaming")
    loaded = datasets.load_from_disk(str(folder))
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


def unreadable(source: DataSource, error: Exception) -> Rejected:
    """The rejection of a source that fails while it is read."""
    return Rejected(f"the dataset {source.path!r} cannot be loaded: {root_cause(error)}")
