"""Text files as people have them: their names, compression, encoding and lines."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

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


def lines_of(text: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a text, with their ends.

    Raises:
        UnreadableFile: a line has ``LONGEST_LINE`` characters or more.
    """
    while line := text.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise UnreadableFile(f"a line is longer than {LONGEST_LINE // 2**20} million characters")
        yield line
