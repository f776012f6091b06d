"""The process behind :mod:`service.context.aside`: answers calls until its parent ends."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from ..parent import end_with_parent
from .aside import read_message, write_message


def main(memory_bytes: int, modules: Sequence[str]) -> None:
    """Answer calls from standard input until it ends."""
    end_with_parent(signal.SIGKILL, os.getppid())
    answers = os.fdopen(os.dup(1), "wb")
    # What libraries print does not come between.
    os.dup2(2, 1)
    for module in modules:
        import_module(module)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    write_message(answers, "ready")
    while True:
        try:
            function, arguments = read_message(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = True, function(*arguments)
        except Exception as error:  # the caller raises it
            answer = False, error.with_traceback(None)
        try:
            write_message(answers, answer)
        except (pickle.PicklingError, TypeError, AttributeError):
            write_message(answers, (False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]}")))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
