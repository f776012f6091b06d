"""Processes that end with the one that started them, also if it is killed.

``python -m service.parent MODULE [ARGUMENT...]`` runs a module so from its first import on.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Mapping

PARENT = "CDKA_PARENT"
_LOOK_SECONDS = 1.0


def environment_of_child(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that :func:`command_of_child` runs, or that calls :func:`end_with_parent`."""
    return {**environment, PARENT: str(os.getpid())}


def command_of_child(*arguments: str) -> list[str]:
    """A command that runs a module, with its arguments, and ends with this process.

    The module itself would look for its parent only after its imports, which take 20 s on a slow machine.
    """
    return [sys.executable, "-m", "service.parent", *arguments]


def end_with_parent(signal_number: int = signal.SIGTERM, parent: int | None = None) -> None:
    """Send this process a signal once its parent has died.

    The parent is that of :func:`environment_of_child`, if none is given; without either nothing happens. The kernel's
    own notice (``PR_SET_PDEATHSIG``) is about the thread that started a process, which may end before its process.
    """
    given = os.environ.pop(PARENT, "")
    expected = parent if parent is not None else int(given) if given.isdigit() else None
    if expected is None:
        return

    def look() -> None:
        while os.getppid() == expected:
            time.sleep(_LOOK_SECONDS)
        os.kill(os.getpid(), signal_number)

    threading.Thread(target=look, name="parent", daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
