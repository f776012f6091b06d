"""Run a command while other processes keep CPUs busy: ``python -m tests.busy 4 -- make test``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# Each process ends by itself when its parent has ended.
_SPIN = "import os\nwhile os.getppid() == {}: sum(range(100_000))"


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep ``count`` CPUs busy, with one process each, while the block runs."""
    busy = [subprocess.Popen([sys.executable, "-c", _SPIN.format(os.getpid())]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main(arguments: Sequence[str]) -> int:
    """Run the command given after the number of processes and ``--``. Returns its exit code."""
    count, separator, *command = arguments
    if separator != "--" or not command:
        raise SystemExit(__doc__)
    with busy_processes(int(count)):
        return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
