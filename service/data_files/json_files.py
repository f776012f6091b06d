"""Read JSON lines, and files that are one JSON array, record by record."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from .text_files import UnreadableFile, lines_of, open_text

_LONGEST_FIRST = 1024 * 1024
_JSON_FORMS = "give json lines or one array of objects"


def json_records(file: Path, encoding: str | None = None) -> Iterator[dict[str, Any]]:
    """The records of a JSON lines file, or of a file that is one JSON array of objects.

    Raises:
        UnreadableFile: a line is not a JSON object, or the text is not in its encoding.
    """
    with open_text(file, encoding) as text:
        start = text.read(1)
        while start and start.isspace():
            start = text.read(1)
        text.seek(0)
        if start == "[":
            yield from _array(text)
            return
        empty = True
        for number, line in enumerate(lines_of(text), 1):
            if not line.strip():
                continue
            empty = False
            yield _object(line, f"line {number}")
        if empty:
            raise UnreadableFile("the file is empty")


def first_json_keys(file: Path, encoding: str | None = None, most: int = 1000) -> list[str] | None:
    """The keys of the first records, in order; ``None`` if they cannot be told without reading a whole array.

    Raises:
        UnreadableFile: as :func:`json_records`.
    """
    first = first_json_record(file, encoding)
    if first is None:
        return None
    keys = dict.fromkeys(first)
    with open_text(file, encoding) as text:
        lines = text.read(1) != "["
    if lines:
        for record in islice(json_records(file, encoding), most):
            keys |= dict.fromkeys(record)
    return list(keys)


def first_json_record(file: Path, encoding: str | None = None) -> dict[str, Any] | None:
    """The first record, without reading the others; ``None`` for an array's record of more than a megabyte.

    Raises:
        UnreadableFile: as :func:`json_records`.
    """
    with open_text(file, encoding) as text:
        head = text.read(_LONGEST_FIRST).lstrip()
    if not head.startswith("["):
        return next(json_records(file, encoding))
    if head[1:].lstrip().startswith("]"):
        raise UnreadableFile("the array is empty")
    try:
        record, _ = json.JSONDecoder().raw_decode(head, len(head) - len(head[1:].lstrip()))
    except (ValueError, RecursionError) as error:
        if len(head) < _LONGEST_FIRST // 2:
            raise UnreadableFile(f"it begins like a JSON array, but is not JSON: {error}") from error
        return None
    if not isinstance(record, dict):
        raise UnreadableFile("entry 1 of the array is not a JSON object")
    return record


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UnreadableFile(
            f"{where} is not a JSON object (give json lines or one array of objects): {said}"
        ) from error
    if not isinstance(record, dict):
        raise UnreadableFile(f"{where} is not a JSON object ({_JSON_FORMS})")
    return record


def _array(text: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    try:
        records = json.load(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeError):
            raise
        raise UnreadableFile(f"it begins like a JSON array, but is not JSON: {error}") from error
    if not records:
        raise UnreadableFile("the array is empty")
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise UnreadableFile(f"entry {number} of the array is not a JSON object")
        yield record
