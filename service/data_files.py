"""Read CSV and JSON files record by record: the server the first one, runners all of them."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from .domain.task_spec import FormatSpec

# How the names of data files end, by the builder that reads them; text may be compressed.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "csv": (".csv", ".tsv", ".tab", ".psv", ".txt"),
    "json": (".json", ".jsonl", ".ndjson", ".jsonlines", ".txt"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc"),
}
_COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz")
# What datasets can load without a repository of its own, from a folder or files that it finds by itself.
PACKAGED = frozenset({
    *("arrow", "audiofolder", "cache", "conll", "csv", "delta", "eval", "fasta"),
    *("fastq", "genbank", "generator", "harbor", "hdf5", "iceberg", "imagefolder", "json"),
    *("lance", "meshfolder", "mmcif", "niftifolder", "pandas", "parquet", "pdb", "pdffolder"),
    *("spark", "sql", "text", "tsfile", "videofolder", "vortex", "webdataset", "xml"),
})  # fmt: skip
# Longer names are not shown: the first line of a file need not be a header.
_LONGEST_NAME = 64
# A longer line does not belong to a text dataset.
LONGEST_LINE = 64 * 1024 * 1024
_LONGEST_FIRST = 1024 * 1024
_JSON_FORMS = "give json lines or one array of objects"
# Magic bytes of the compressions that are read.
_COMPRESSED: tuple[tuple[bytes, Callable[[IO[bytes]], IO[bytes]]], ...] = (
    (b"\x1f\x8b", lambda raw: cast(IO[bytes], gzip.GzipFile(fileobj=raw))),
    (b"BZh", lambda raw: cast(IO[bytes], bz2.BZ2File(raw))),
    (b"\xfd7zXZ\x00", lambda raw: cast(IO[bytes], lzma.LZMAFile(raw))),  # noqa: SIM115
)
_OTHERS = (
    (b"PK\x03\x04", "a zip archive (or a spreadsheet)"),
    (b"(\xb5/\xfd", "compressed by zstd"),
    (b"PAR1", "Parquet"),
)
# UTF-32's mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Share of lines that look complete without quotation marks, from which on the marks are taken for text.
_PLAIN_SHARE = 0.9


class UnreadableFile(ValueError):
    """A file is not in its format. The message says where, and what would be right."""


def has_suffix(name: str, builder: str) -> bool:
    """Whether a file's name ends as those of this kind of data do."""
    plain = name.lower()
    if builder in ("csv", "json"):
        for end in _COMPRESSED_SUFFIXES:
            plain = plain.removesuffix(end)
    return plain.endswith(SUFFIXES[builder])


def names_shown(names: Sequence[str]) -> str | None:
    """Names of columns for a message; ``None`` if they do not look like a header, so that no content is shown."""
    plain = all(0 < len(name) <= _LONGEST_NAME and name.isprintable() for name in names)
    if not names or not plain or (len(names) == 1 and not _is_word(names[0])):
        return None
    return ", ".join(repr(name) if name != name.strip() else name for name in names)


def _is_word(name: str) -> bool:
    """Whether a single name is a plain word, rather than a line of something else."""
    return len(name) <= 32 and name.replace("_", "").replace(" ", "").isalpha()


@contextmanager
def open_text(file: Path, encoding: str | None = None) -> Iterator[io.TextIOWrapper]:
    """A file as text with its line ends: decompressed (gzip, bzip2, xz), and decoded as its byte order mark says.

    Raises:
        UnreadableFile: it is compressed in another way, is another format, or is not in this encoding.
    """
    with file.open("rb") as raw:
        opened = _decompressed(raw, file)
        try:
            head = opened.read(8)
            opened.seek(0)
            if opened is not raw and any(head.startswith(magic) for magic, _ in _COMPRESSED):
                raise UnreadableFile("it is compressed twice; compress it once")
            found = encoding or next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
            if encoding is not None and codecs.lookup(encoding).name == "utf-8":
                found = "utf-8-sig"
            with io.TextIOWrapper(opened, encoding=found, newline="") as text:
                yield text
        except UnicodeDecodeError as error:
            raise UnreadableFile(_undecodable(file, found, error)) from error
        except UnicodeError as error:  # UTF-16 without a byte order mark, for one
            raise UnreadableFile(f"it is not {found}: {error}") from error
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
            raise UnreadableFile(f"it cannot be decompressed: {error}") from error


def _decompressed(raw: IO[bytes], file: Path) -> IO[bytes]:
    head = raw.read(8)
    raw.seek(0)
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise UnreadableFile(f"it is {what}, not text; give plain text, or text compressed by gzip, bzip2 or xz")
    return next((opener(raw) for magic, opener in _COMPRESSED if head.startswith(magic)), raw)


def _undecodable(file: Path, encoding: str, error: UnicodeDecodeError) -> str:
    where = ""
    if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig"):
        with file.open("rb") as raw:
            for number, line in enumerate(_decompressed(raw, file), 1):
                try:
                    line.decode()
                except UnicodeDecodeError:
                    where = f"line {number} "
                    break
    byte = error.object[error.start]
    return (
        f"{where or 'it '}is not {encoding} (byte 0x{byte:02x}); "
        "set dataset.format.encoding, for example to cp1252 or latin-1"
    )


class CsvFile:
    """A CSV file's column names and records. Cells are text, exactly as written.

    Raises:
        UnreadableFile: no header, a column named twice, or a record of another length than the header.
    """

    def __init__(self, file: Path, form: FormatSpec | None) -> None:
        self._file = file
        self._form = form or FormatSpec()
        self.delimiter = self._form.delimiter or ("\t" if ".tsv" in [s.lower() for s in file.suffixes] else ",")
        quote = self._form.quotechar
        self._quote = '"' if quote is None else quote
        self.columns = self._columns()

    def _records(self, lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
        """Every record that is not an empty line, with the number of its last line."""
        csv.field_size_limit(LONGEST_LINE)
        reader = csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self._quote or None,
            quoting=csv.QUOTE_MINIMAL if self._quote else csv.QUOTE_NONE,
            strict=True,
        )
        while True:
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UnreadableFile(f"line {reader.line_num}: {self._explained(error)}") from error
            if record:
                yield reader.line_num, record

    def _explained(self, error: csv.Error) -> str:
        said = str(error)
        if "unexpected end of data" in said:
            said = f"a quotation mark ({self._quote}) is opened and never closed"
        elif "expected after" in said:
            said = f"text follows a closing quotation mark ({self._quote})"
        return f"{said}; if quotation marks are part of the text, set dataset.format.quotechar: ''"

    def _columns(self) -> list[str]:
        with open_text(self._file, self._form.encoding) as text:
            first = next(self._records(_lines(text)), None)
        if first is None:
            raise UnreadableFile("the file is empty")
        header = self._form.header
        if isinstance(header, list):
            names = header
            if len(names) != len(first[1]):
                raise UnreadableFile(f"format.header has {len(names)} names; the first line has {len(first[1])} cells")
        else:
            names = first[1] if header else [f"column_{k}" for k in range(1, len(first[1]) + 1)]
        twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
        if twice is not None:
            raise UnreadableFile(f"its header names the column {twice!r} twice")
        return names

    def hint(self) -> str:
        """What may be wrong where a column is missing, as a clause; empty if nothing suggests itself."""
        if len(self.columns) == 1:
            other = next((d for d in (";", "\t", "|", ",") if d != self.delimiter and d in self.columns[0]), None)
            if other is not None:
                return f"; if {other!r} separates its columns, set dataset.format.delimiter"
        return ""

    def records(self) -> Iterator[list[str]]:
        """The records after the header, each with a cell for every column.

        Raises:
            UnreadableFile: a record has more or fewer cells, quotation marks swallow lines, or the text is not in its
                encoding.
        """
        swallowed = _Swallowed(self, self._form.quotechar is None)
        with open_text(self._file, self._form.encoding) as text:
            for number, (line, record) in enumerate(self._records(swallowed.watched(text))):
                if number == 0 and self._form.header is True:
                    continue
                if len(record) != len(self.columns):
                    shown = self.delimiter.join(record)[:60]
                    raise UnreadableFile(
                        f"line {line} has {len(record)} cells, the header {len(self.columns)} ({shown!r}); "
                        "put text that holds the delimiter in quotation marks"
                    )
                if self._form.header is True and [cell.lstrip("\ufeff") for cell in record] == self.columns:
                    raise UnreadableFile(f"line {line} repeats the header; were files joined? Take it out")
                swallowed.rows += 1
                yield record
        swallowed.check()


class _Swallowed:
    """Detects lone quotation marks: they join lines that are complete records by themselves."""

    def __init__(self, file: CsvFile, active: bool) -> None:
        self._file = file
        self._active = active and len(file.columns) > 1
        self._lines = self._complete = 0
        self.rows = 0

    def watched(self, text: io.TextIOWrapper) -> Iterator[str]:
        for line in _lines(text):
            if line.strip("\r\n"):
                self._lines += 1
                self._complete += line.count(self._file.delimiter) == len(self._file.columns) - 1
            yield line

    def check(self) -> None:
        """Raise if nearly every line is a record by itself, yet there are fewer records than lines."""
        lines = self._lines - 1
        if self._active and self.rows < lines and self._complete >= _PLAIN_SHARE * self._lines:
            raise UnreadableFile(
                f"it has {lines} lines after the header, but quotation marks join them to {self.rows} rows; set "
                "dataset.format.quotechar: '' if quotation marks are part of the text, or '\"' if cells span lines"
            )


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
        for number, line in enumerate(_lines(text), 1):
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


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise UnreadableFile(f"a line is longer than {LONGEST_LINE // 2**20} million characters")
        yield line


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
