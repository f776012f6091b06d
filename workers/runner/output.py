"""Capture what a process prints while a trial runs: Python, libraries and native code."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import threading
from types import TracebackType
from typing import Self

MOST_WAITING = 1_000_000
_PIECE = 100_000


class CapturedOutput:
    """Captures standard output and standard error within the context and forwards both.

    Keeps at most ``MOST_WAITING`` captured characters until :meth:`sent` confirms them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text = ""
        self._start = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __enter__(self) -> Self:
        _flush()
        self._saved = (os.dup(1), os.dup(2))
        reader, writer = os.pipe()
        for number in (1, 2):
            os.dup2(writer, number)
        os.close(writer)
        # A descriptor of its own: the thread outlives this context if a child keeps the pipe open.
        onward = os.dup(self._saved[1])
        self._thread = threading.Thread(target=self._read, args=(reader, onward), name="output", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for number in self._saved:
            os.close(number)

    def stop(self) -> None:
        """Stop capturing; captured output stays available. May be called twice."""
        _flush()
        for number, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, number)
        # A child that outlives the trial may still hold the other end.
        self._thread.join(timeout=2.0)

    def _read(self, reader: int, onward: int) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(reader, 65_536):
                # The original output may be a full disk; the trial must continue.
                with contextlib.suppress(OSError):
                    os.write(onward, data)
                self._add(self._decoder.decode(data))
        os.close(reader)
        os.close(onward)

    def _add(self, text: str) -> None:
        # Progress bars rewrite their line; in a log each state is a line.
        plain = "".join(c for c in text.replace("\r\n", "\n").replace("\r", "\n") if c >= " " or c in "\n\t")
        with self._lock:
            self._text += plain
            surplus = len(self._text) - MOST_WAITING
            if surplus > 0:
                self._text, self._start = self._text[surplus:], self._start + surplus

    def waiting(self) -> tuple[int, str]:
        """The next piece to send, and its position in the whole output."""
        with self._lock:
            return self._start, self._text[:_PIECE]

    def sent(self, upto: int) -> None:
        """Drop the output before a position, because it was delivered."""
        with self._lock:
            self._text = self._text[max(0, upto - self._start) :]
            self._start = max(self._start, upto)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
