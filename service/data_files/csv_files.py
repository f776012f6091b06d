"""Read CSV files record by record."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from ..domain.task_spec import FormatSpec
from .text_files import LONGEST_LINE, UnreadableFile, lines_of, open_text

# Share of lines that look complete without quotation marks, from which on the marks are taken for text.
_PLAIN_SHARE = 0.9


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
            first = next(self._records(lines_of(text)), None)
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
        for line in lines_of(text):
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
